#!/usr/bin/env bash
# What is to be seen on a CUDA GPU: its tests, then the benchmarks, their figures as JSON and Markdown in a folder.
# The stages come in the order of their worth. One that fails does not stop the others; one that takes longer than
# ten minutes is ended, and keeps what it had: every stage writes its figures as they come.
#
#   bash scripts/gpu.sh figures/                        everything
#   bash scripts/gpu.sh figures/ tests attention        some stages; each leaves at most four files
#   bash scripts/gpu.sh figures/ --rehearse             the same on a CPU with networks of two layers, in five minutes
#
# PYTHON names the interpreter; the package need not be installed for it. CARD: the smaller card that a larger one
# stands for where a bench caps its memory (t4, p100 or GiB). TOKENIZER: of the batching stage; without it one is trained
# on its rows. STAGE_SECONDS: of one stage. TOTAL_SECONDS: of all that are asked for, where a machine is lent for so long.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
known="tests attention attention_flex attention_large levers batches engine_many engine_two qlora label"
usage="usage: bash scripts/gpu.sh FOLDER [--rehearse] [STAGE ...], with stages of: $known"
out=
rehearse=
stages=()
for word in "$@"; do
    case $word in
        --rehearse) rehearse=yes ;;
        -*) echo "error: $word is no option. $usage" >&2; exit 2 ;;
        *) if [ -z "$out" ]; then out=$word; else stages+=("$word"); fi ;;
    esac
done
[ -n "$out" ] || { echo "$usage" >&2; exit 2; }
for name in "${stages[@]}"; do
    [[ " $known " == *" $name "* ]] || { echo "error: no stage $name. $usage" >&2; exit 2; }
done
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
card=${CARD:-t4}
tokenizer=${TOKENIZER:-made}
limit=${STAGE_SECONDS:-590}
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ -n "$rehearse" ]; then
    export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no CUDA GPU on this machine ($python): the tests and figures of this script need one." >&2
    echo "bash scripts/gpu.sh $out --rehearse runs every stage on the CPU, with networks of two layers." >&2
    exit 2
fi
mkdir -p "$out"
failed=()

at() { [ -z "$rehearse" ] && echo "$1" || echo "$2"; } # GPU'S ARGUMENTS, THE REHEARSAL'S: words without spaces

stage() { # NAME COMMAND ...
    local name=$1 started=$SECONDS seconds=$limit status
    shift
    if [ -n "${TOTAL_SECONDS:-}" ]; then
        seconds=$((TOTAL_SECONDS - SECONDS < limit ? TOTAL_SECONDS - SECONDS : limit))
    fi
    if [ "$seconds" -le 0 ]; then
        echo "== $name: no time is left for it" | tee "$out/$name.log"
        failed+=("$name")
        return
    fi
    echo "== $name: $*"
    timeout -k 5 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed+=("$name")
    [ "$status" != 124 ] || echo "== $name: ended after $seconds s; it keeps the figures it had" | tee -a "$out/$name.log"
    echo "== $name: $((SECONDS - started)) s"
    tables
}

tables() { # all that is there so far, each file by itself: one that is not whole takes no other with it
    local one
    for one in "$out"/{attention,attention_flex,attention_large,levers,batches}.json; do
        [ ! -s "$one" ] || { "$python" scripts/results_table.py "$one" && echo; }
    done > "$out/tables.md"
}

# A process for each file: an error that loses CUDA to one, or a package that one lacks, leaves the others theirs.
each_file='bad=0; for files in "$@"; do timeout --foreground -k 5 240 "$0" -m pytest -v -m gpu $files || bad=1; done; exit $bad'
tests() {
    local files
    mapfile -t files < <(grep -l "pytest\.mark\.gpu" tests/test_*.py)
    [ -z "$rehearse" ] || files=("${files[*]}")
    stage tests bash -c "$each_file" "$python" "${files[@]}"
}

deberta() { # NAME, GPU'S ARGUMENTS, MORE ...: what is known to run comes in stages of its own before what never ran
    local name=$1 arguments
    arguments=$(at "--precision fp16 --memory-gib $card $2" "--shape toy --tokens 32 --lengths 16,32 --rounds 1")
    shift 2
    stage "$name" "$python" scripts/bench/deberta.py $arguments --dropout 0 "$@" --json "$out/$name.json"
}
attention() {
    deberta attention "--shape base --tokens 4096 --lengths 512,1024,2048,4096 --largest" --tiers eager,sdpa
}
attention_flex() {
    deberta attention_flex "--shape base --tokens 4096 --lengths 1024,4096" --tiers eager,sdpa,flex,flashdeberta
}
attention_large() {
    deberta attention_large "--shape large --tokens 2048 --lengths 2048 --largest" --tiers eager,sdpa,flex
}
levers() {
    stage levers "$python" scripts/bench/levers.py --json "$out/levers.json" \
        $(at "--shape base --tokens 512 --rows 8 --precision fp16" \
            "--shape toy --tokens 64 --rows 2 --vocabulary 200 --rounds 1")
}
batches() {
    stage batches "$python" scripts/bench/batches.py --source data/sample/arena/train.csv --tokenizer "$tokenizer" \
        $(at "--hidden 768 --layers 12 --step-rows 64" "--rows 12 --rounds 1 --budget 128") --json "$out/batches.json"
}
engine_many() {
    stage engine_many "$python" scripts/bench/soft_classification.py --job many --table "$out/engine_many.md" \
        --methods "$(at "plain,ours with,lm-eval,cappr" "ours")" \
        $(at "--shape 1b --prompts 1000 --rounds 2" "--shape toy --prompts 6 --rounds 1 --oracle-prompts 2 --threads 1")
}
engine_two() { # 8B weights are made in every process: the methods that say most
    stage engine_two "$python" scripts/bench/soft_classification.py --job two --table "$out/engine_two.md" \
        --methods "$(at "plain,generate (batch 16),ours without the shared prefix,ours with the head" "ours,plain")" \
        $(at "--shape 8b --prompts 1000 --rounds 2 --precision bf16" \
            "--shape toy --prompts 6 --rounds 1 --oracle-prompts 2 --threads 1")
}
bits() { # 4-bit weights, which on a CPU are not always to be had
    "$python" -c 'import bitsandbytes' 2> /dev/null && echo nf4 || echo none
}
qlora() {
    stage qlora "$python" scripts/bench/qlora.py --json "$out/qlora.json" --table "$out/qlora.md" \
        $(at "--shape 8b --memory-gib $card" \
            "--shape toy --lengths 8 --rows 1 --steps 1 --roads ours,plain --threads 1 --quantization $(bits)")
}
label() {
    stage label "$python" scripts/bench/qlora.py --roads none --label --json "$out/label.json" --table "$out/label.md" \
        $(at "--shape 8b --memory-gib $card" \
            "--shape toy --label-rows 3 --new-tokens 2 --threads 1 --quantization $(bits)")
}

[ ${#stages[@]} -gt 0 ] || read -ra stages <<< "$known"
for name in "${stages[@]}"; do "$name"; done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
