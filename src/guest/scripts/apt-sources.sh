# Whether a source file that apt reads has a repository: $1, without scheme and
# last slash. $2: the file. Shell built-ins only. Apt takes http, https and a login
# for the same repository.
has_repository() {
    case ${2##*/} in *[!A-Za-z0-9_.-]*) return 1 ;; esac
    [ -f "$2" ] || return 1
    n=0
    here=
    off=
    set -f
    while { IFS= read -r line || [ -n "$line" ]; } && [ $n -lt 1000 ]; do
        n=$((n + 1))
        case $line in
        "" | " " | "	") [ -n "$here" ] && [ -z "$off" ] && break; here= off= ;;
        [Ee]nabled:*[Nn][Oo]* | [Ee]nabled:*[Ff]alse*) off=1 ;;
        esac
        for word in ${line%%#*}; do
            it=${word#*://}
            [ "$it" = "$word" ] && continue
            case ${it%%/*} in *@*) it=${it#*@} ;; esac
            while [ "$it" != "${it%/}" ]; do it=${it%/}; done
            [ "$it" = "$1" ] && here=1
        done
    done <"$2"
    set +f
    [ -n "$here" ] && [ -z "$off" ]
}
