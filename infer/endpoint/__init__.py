"""Questions asked of an OpenAI-compatible server: client sends one, queue many at once, completions reads what came.

Knows HTTP and JSON; which questions are asked, infer.readers.endpoint and infer.audit.verdicts know.
"""
