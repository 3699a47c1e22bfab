# The project's Python, for the other scripts to source from the repository root:
#   ensure_venv requirements.txt   makes .venv, or reuses it, with what that file lists; instant when nothing changed
#   find_python                    prints the interpreter to run: $PYTHON, else .venv's, else python3
#   value_of --flag DEFAULT "$@"   prints the last value that a command line gives a flag
# PYTHON=/path/to/python also chooses the interpreter that a new .venv is made with (3.11 or newer).
# shellcheck shell=bash

VENV=.venv
UNFINISHED=$VENV/.unfinished # holds the process id of the set-up at work; left behind by one that was killed

fail() {
    echo "error: $*" >&2
    exit 2
}

find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
    elif [[ -x $VENV/bin/python ]]; then
        echo "$VENV/bin/python"
    else
        echo python3
    fi
}

value_of() {
    local flag=$1 value=$2
    shift 2
    while (($#)); do
        case $1 in
        "$flag") value=${2-$value} ;;
        "$flag"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

# What an installed .venv must match: the lists that $1 pulls in, and the constraints.
fingerprint() {
    if [[ $1 == requirements-dev.txt ]]; then
        cat requirements-dev.txt requirements.txt scripts/constraints.txt | cksum
    else
        cat requirements.txt scripts/constraints.txt | cksum
    fi
}

has_installed() { # has_installed requirements.txt: .venv runs and was filled from that list as it is now
    [[ -f $VENV/.installed-$1 && ! -e $UNFINISHED ]] || return 1
    [[ $(<"$VENV/.installed-$1") == "$(fingerprint "$1")" ]] && "$VENV/bin/python" -c "" 2>/dev/null
}

make_venv() {
    local base=${PYTHON:-python3}
    command -v "$base" >/dev/null || fail "$base not found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python"
    "$base" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null ||
        fail "$base is $("$base" --version 2>&1), but 3.11 or newer is needed: name one with PYTHON=/path/to/python"
    rm -rf "$VENV"
    "$base" -m venv "$VENV" >/dev/null 2>&1 || {
        rm -rf "$VENV"
        fail "'$base -m venv' failed here: install its venv module (Debian, Ubuntu: apt install python3-venv) or set PYTHON"
    }
}

ensure_venv() {
    local list=$1 owner
    has_installed "$list" && return

    if [[ -e $UNFINISHED ]]; then
        owner=$(<"$UNFINISHED")
        if [[ -n $owner ]] && kill -0 "$owner" 2>/dev/null; then
            fail "process $owner is filling $VENV right now: wait for it (or stop it and delete $VENV)"
        fi
        echo "set-up: the last one was cut short, making $VENV again"
        make_venv
    elif ! "$VENV/bin/python" -c "import pip" 2>/dev/null; then
        echo "set-up: making $VENV"
        make_venv
    fi

    # A torch put there by hand (another CUDA version, a CPU build) is the user's choice: the range decides, not the pin.
    local constraints=scripts/constraints.txt
    if [[ ! -f $VENV/.installed-requirements.txt ]] && "$VENV/bin/python" -m pip show --quiet --quiet torch 2>/dev/null; then
        constraints=/dev/null
    fi

    echo "set-up: installing $list (up to 6 GB the first time, most of it PyTorch: some minutes)"
    local started=$SECONDS
    echo $$ >"$UNFINISHED"
    trap 'exit 130' INT TERM # keeps the mark, unlike an error of pip's, which leaves nothing half-installed
    # Twice quiet: errors only. Not compiling ahead what few will import saves a third of the time.
    "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
        --requirement "$list" --constraint "$constraints" || {
        rm "$UNFINISHED"
        fail "pip could not install $list (its reason is above): run this again when that is mended"
    }
    trap - INT TERM
    fingerprint requirements.txt >"$VENV/.installed-requirements.txt"
    fingerprint "$list" >"$VENV/.installed-$list"
    rm "$UNFINISHED"
    echo "set-up: done in $((SECONDS - started)) s"
}
