# Whether a source file that apt reads has the packages of a repository, or has the
# repository with another key than ours: then apt reads nothing at all. $1: the
# repository, without scheme and last slash; $2: the file; $3: our Signed-By; $4: the
# architecture. Shell built-ins only. Apt takes http, https and a login for the same
# repository.
has_repository() {
    case ${2##*/} in *[!A-Za-z0-9_.-]*) return 1 ;; esac
    [ -f "$2" ] || return 1
    case $2 in *.list) list=1 field=list ;; *) list= field= ;; esac
    n=0
    found=
    here= off= deb= flat= archs= by=
    set -f
    while { IFS= read -r line || [ -n "$line" ]; } && [ $n -lt 1000 ]; do
        n=$((n + 1))
        case $line in "#"*) continue ;; esac
        [ -n "$list" ] && line=${line%%#*}
        # An entry ends with each line of a list, and else with an empty one.
        case $list$line in
        1* | "" | " " | "	")
            counts "$3" "$4" && found=1 && break
            here= off= deb= flat= archs= by=
            ;;
        [!\ \	]*:*) field=${line%%:*} line=${line#*:} ;;
        esac
        for word in $line; do
            word=${word#[}
            word=${word%]}
            source_word "$1"
        done
    done <"$2"
    [ -z "$found" ] && counts "$3" "$4" && found=1
    set +f
    [ -n "$found" ]
}

# One $word of $field; its names and values are read in any case, as by apt.
source_word() {
    case $field:$word in
    list:deb | [Tt][Yy][Pp][Ee][Ss]:deb) deb=1 ;;
    list:arch=*) archs=,${word#arch=}, ;;
    [Aa][Rr][Cc][Hh][Ii][Tt][Ee][Cc][Tt][Uu][Rr][Ee][Ss]:*) archs=$archs,$word, ;;
    list:signed-by=*) by=${word#signed-by=} ;;
    [Ss][Ii][Gg][Nn][Ee][Dd]-[Bb][Yy]:*) by=$word ;;
    [Ee][Nn][Aa][Bb][Ll][Ee][Dd]:*)
        case $word in
        0 | [Nn][Oo] | [Ff][Aa][Ll][Ss][Ee] | [Oo][Ff][Ff] | [Ww][Ii][Tt][Hh][Oo][Uu][Tt] | [Dd][Ii][Ss][Aa][Bb][Ll][Ee]) off=1 ;;
        esac
        ;;
    list:*://* | [Uu][Rr][Ii][Ss]:*://*)
        it=${word#*://}
        case ${it%%/*} in *@*) it=${it#*@} ;; esac
        while [ "$it" != "${it%/}" ]; do it=${it%/}; done
        [ "$it" = "$1" ] && here=1
        ;;
    list:*/ | [Ss][Uu][Ii][Tt][Ee][Ss]:*/) flat=1 ;;
    esac
}

# Whether the entry that was read is such a one. Of deb-src, or of another
# architecture, apt needs the same key, and ours has the packages. Of a flat
# repository apt reads the packages of each architecture.
counts() {
    [ -n "$here" ] && [ -z "$off" ] || return 1
    [ "$by" = "$1" ] || return 0
    [ -n "$flat" ] && archs=
    case $deb${archs:-,$2,} in 1*",$2,"*) return 0 ;; esac
    return 1
}
