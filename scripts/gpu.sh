#!/usr/bin/env bash
# What is to be seen on a CUDA GPU: its tests, then the benchmarks, their figures as JSON and Markdown in a folder.
# Stages of at most ten minutes each, in the order of their worth; a stage that fails does not stop the others.
#
#   bash scripts/gpu.sh figures/                        everything
#   bash scripts/gpu.sh figures/ tests attention        some stages: tests attention levers batches engine qlora
#
# PYTHON names the interpreter. A larger card stands in for one of 16 GiB (P100, T4) where a bench caps its memory.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?"usage: bash scripts/gpu.sh FOLDER [STAGE ...]"}
shift
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled PYTHONUNBUFFERED=1
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "error: torch sees no CUDA GPU on this machine ($python): the tests and figures of this script need one." >&2
    exit 2
}
mkdir -p "$out"
failed=()

stage() { # NAME COMMAND ...
    local name=$1 started=$SECONDS
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
    echo "== $name: $((SECONDS - started)) s"
}

tests() { stage tests "$python" -m pytest -m gpu; }
attention() {
    stage attention "$python" scripts/bench/deberta.py --shape base --precision fp16 --dropout 0 --tokens 4096 \
        --lengths 512,1024,2048,4096 --tiers eager,sdpa,flex,flashdeberta --memory-gib 16 --largest \
        --json "$out/attention.json"
    stage attention_large "$python" scripts/bench/deberta.py --shape large --precision fp16 --dropout 0 --tokens 2048 \
        --lengths 2048 --tiers eager,sdpa,flex --memory-gib 16 --largest --json "$out/attention_large.json"
}
levers() {
    stage levers "$python" scripts/bench/levers.py --shape base --tokens 512 --rows 8 --precision fp16 \
        --json "$out/levers.json"
}
batches() {
    stage batches "$python" scripts/bench/batches.py --source data/sample/arena/train.csv --device cuda --hidden 768 \
        --layers 12 --step-rows 64 --json "$out/batches.json"
}
engine() {
    stage engine_many "$python" scripts/bench/soft_classification.py --shape 1b --job many --prompts 2000 --rounds 3 \
        --table "$out/engine_many.md"
    stage engine_two "$python" scripts/bench/soft_classification.py --shape 8b --job two --prompts 1000 \
        --precision bf16 --table "$out/engine_two.md"
}
qlora() {
    stage qlora "$python" scripts/bench/qlora.py --shape 8b --memory-gib 16 --label --json "$out/qlora.json" \
        --table "$out/qlora.md"
}

for name in "${@:-tests attention levers batches engine qlora}"; do
    for one in $name; do
        case $one in
            tests | attention | levers | batches | engine | qlora) "$one" ;;
            *) echo "error: no stage $one: tests attention levers batches engine qlora" >&2; exit 2 ;;
        esac
    done
done
found=("$out"/{attention,attention_large,levers,batches}.json)
written=()
for one in "${found[@]}"; do [ -s "$one" ] && written+=("$one"); done
[ ${#written[@]} = 0 ] || "$python" scripts/results_table.py "${written[@]}" > "$out/tables.md"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
