#!/usr/bin/env bash
# Runs every fast test (arguments go to pytest: -m slow, -k name, a file); makes .venv if it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# One thread and no spinning: two threads on a busy machine can be 20 times slower than one.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled
exec .venv/bin/python -m pytest "$@"
