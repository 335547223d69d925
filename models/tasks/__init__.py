"""The tasks: rows, text, label order and token budget. Knows no network: torch is never imported here."""
