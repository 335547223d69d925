"""How the engine runs a network: a plan shares what prompts have in common, passes carry it out, memory in view.

plans -> passes, decoder_passes -> prefix_attention, last_block -> tree_log_probs. Knows token ids and tensors only.
"""
