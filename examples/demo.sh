#!/bin/sh
# The tutorial flow in a folder of its own, with one bad row among the good. `make demo` runs it.
#
#   sh examples/demo.sh [PYTHON]
#
# You should see a final state of FAILED (one of four tasks failed) and both good rows in the database.
set -eu

python=${1:-python3}
example=$(cd "$(dirname "$0")" && pwd)/add_projects.py
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

echo "Adding three projects, one of them with an empty name that the database refuses:"
code=0
"$python" "$example" '["orion", "", "critically-important"]' || code=$?
[ "$code" -eq 1 ] || { echo "expected the exit code of a failed flow, 1, and got $code" >&2; exit 1; }
echo "Its failing is the point: the bad row is reported, and the good ones are in the database all the same:"
"$python" - <<'EOF'
import sqlite3

for row in sqlite3.connect("example.db").execute("SELECT id, name FROM projects"):
    print(*row, sep="|")
EOF
