"""What is asked and what answers: tasks (rows, text, labels) and the networks that give label logits."""
