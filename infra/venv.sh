# Sourced by the commands beside it: one virtual environment in the checkout, installed once for each set of pins.

install_project() { # install_project [EXTRA]
    local extra=${1:+[$1]} python=${PYTHON:-python3} stamp
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "yarn-ops needs Python 3.11 or newer; set PYTHON to one" >&2
        return 2
    }
    stamp=.venv/installed$extra-$(cat pyproject.toml infra/constraints.txt | sha256sum | cut -c1-16)
    [[ -e $stamp ]] && return
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    echo "installing yarn-ops$extra into .venv ..."
    .venv/bin/python -m pip install --quiet --no-compile --constraint infra/constraints.txt --editable ".$extra"
    # On every processor, where pip does it on one; a few packages hold templates that are no Python yet. Left
    # out is a quarter that nearly nobody imports: the packages' tests, and the models of transformers.
    .venv/bin/python -m compileall -q -j 0 -x '/tests/|/transformers/models/' .venv/lib > /dev/null || true
    touch "$stamp"
}
