#!/bin/sh
# environment.sh run|dev|fuzz: make the virtual environment $VENV (default .venv) with $PYTHON (default python3).
# run: only what the service needs. dev: the tools of the checks too. fuzz: the fuzzer, called after dev.
# Does nothing when it is already right.
set -eu
cd "$(dirname "$0")/.."
kind=$1
venv=${VENV:-.venv}
python=${PYTHON:-python3}

# Made anew for another Python, and where a moved checkout or a Python upgraded away left what can't run.
version='import sys; print(sys.version_info[:2])'
if [ "$("$venv/bin/python" -c "import pip; $version" 2>/dev/null)" != "$("$python" -c "$version")" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

install() {  # NAME OF THE REQUIREMENTS FILE
    if cmp -s "tools/$1" "$venv/$1"; then
        return
    fi
    echo "installing tools/$1 into $venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "tools/$1" >&2
    cp "tools/$1" "$venv/$1"
}

install requirements.txt
if [ "$kind" != run ]; then
    install "requirements-$kind.txt"
fi
