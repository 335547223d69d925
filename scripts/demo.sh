#!/usr/bin/env bash
# From a fresh clone to a score and a submission.csv: makes .venv if it is missing, then trains and predicts the
# quickstart on data/sample. No network once installed. Safe to run again: finished work is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 WANDB_MODE=disabled
.venv/bin/python -m train +experiment=arena_quickstart "$@"
.venv/bin/python -m infer +experiment=arena_quickstart "$@"
