# The arguments of the data preparation scripts, for them to source: sets $images ("" if not given) and $data_root.
#   parse_arguments "$@"   [PATH] [--data_root DIR] [--help]
# shellcheck shell=bash

refuse() {
    echo "$(basename "$0"): error: $1 (see --help)" >&2
    exit 2
}

parse_arguments() {
    images=
    data_root=data
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                sed -n '2,/^set/ s/^# \{0,1\}//p' "$0"
                exit
                ;;
            --data_root)
                [ $# -ge 2 ] || refuse "--data_root needs a folder"
                data_root=$(realpath -m -- "$2")
                shift
                ;;
            --data_root=*) data_root=$(realpath -m -- "${1#*=}") ;;
            -*) refuse "unknown flag $1" ;;
            *)
                [ -z "$images" ] || refuse "one folder is enough, got $images and $1"
                images=$(realpath -m -- "$1")
                ;;
        esac
        shift
    done
}
