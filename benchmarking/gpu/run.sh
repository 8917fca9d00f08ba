#!/usr/bin/env bash
# Run the GPU benchmark, without network and without installing anything into the machine's Python:
#   bash benchmarking/gpu/run.sh [--wheels FOLDER] [arguments of python -m benchmarking.gpu]
# Wheels in FOLDER (packages the machine lacks, such as gymnasium, datasets or trl) go into a temporary directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
if [[ ${1:-} == --wheels ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$2"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    shift 2
fi
"$python" -m benchmarking.gpu "$@"
