# What the scripts of experiments share, for them to source from the repository root:
#   run_table NAME "$table" FLAGS...   runs it by tools/experiments.py; sets `python`, and `results`, the folder of its runs.
#                                      Where it is only to be listed, timed or explained, the script ends here.
#                                      `failed` is 1 where runs have failed: the page is of the others then
# shellcheck shell=bash
source scripts/venv.sh

run_table() {
    local name=$1 table=$2 argument
    shift 2
    ensure_venv requirements.txt
    python=$(find_python)
    results=$(value_of --runs_root runs "$@")/$name
    failed=0
    "$python" tools/experiments.py "$name" "$@" <<<"$table" || failed=$?
    for argument in "$@"; do
        case $argument in
        --list | --time | -h | --help) exit "$failed" ;;
        esac
    done
    ((failed <= 1)) || exit "$failed" # a wrong command, a signal
}
