"""The completion scripts for bash, zsh and fish. Pure.

A script calls `vmess completion words -- 2 newvm st` with the index of the word at the cursor and all words.
It prints one line for each candidate: the word, a tab, and a description. `:files` stands for file names.
"""

BASH = r"""# Completion of vmess and vmessctl for bash, as `vmess completion bash` prints it.
# shellcheck shell=bash

_vmess() {
    # bash also splits words at ":" and "=": join pieces without a blank between them. And to bash, a cursor
    # right before a word is in that word.
    local i piece gap word at=0 words=() place=-1 stem='' current='' last=''
    for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
        piece=${COMP_WORDS[i]}
        gap=${COMP_LINE:at}
        gap=${gap%%[![:blank:]]*}
        at=$((at + ${#gap}))
        if [[ $i -eq $COMP_CWORD && -n $gap && -n $piece && $COMP_POINT -le $at ]]; then
            place=${#words[@]}
            words+=('')
        fi
        [[ -z $gap && -n $last ]] || words+=('')
        if [[ $i -eq $COMP_CWORD && $place -lt 0 ]]; then
            place=$((${#words[@]} - 1))
            stem=${words[place]}
            [[ -z $piece ]] || piece=${piece:0:COMP_POINT-at}
            current=$stem$piece
            [[ $piece != [=:] ]] || stem+=$piece
        fi
        words[${#words[@]} - 1]+=$piece
        last=${COMP_WORDS[i]}
        at=$((at + ${#last}))
    done
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        if [[ $word == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do
                COMPREPLY+=("${word#"$stem"}")
            done < <(compgen -f -- "$current")
        elif [[ $word == "$current"* ]]; then
            COMPREPLY+=("${word#"$stem"}")
        fi
    done < <("$1" completion words -- "$((place - 1))" "${words[@]:1}" 2>/dev/null)
}

complete -F _vmess vmess vmessctl
"""

ZSH = r"""#compdef vmess vmessctl
# Completion of vmess and vmessctl for zsh, as `vmess completion zsh` prints it.

_vmess() {
    local answer word files=
    local -a answers found
    answers=("${(@f)$("${(Q)words[1]}" completion words -- $((CURRENT - 2)) "${(@Q)words[2,-1]}" 2>/dev/null)}")
    for answer in "${answers[@]}"; do
        word=${answer%%$'\t'*}
        if [[ $word == :files ]]; then
            files=yes
        elif [[ -n $word ]]; then
            found+=("${word//:/\\:}:${answer#*$'\t'}")
        fi
    done
    (( ${#found} )) && _describe -V 'vmess' found
    [[ -z $files ]] || _files
}

if [[ ${funcstack[1]} == _vmess ]]; then
    _vmess "$@"
else
    compdef _vmess vmess vmessctl
fi
"""

FISH = r"""# Completion of vmess and vmessctl for fish, as `vmess completion fish` prints it.

function __vmess_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l whole (commandline -op)
    set -l after
    set -l next (math (count $before) + 1)
    test -n "$current"; and set next (math $next + 1)
    if test $next -le (count $whole)
        set after $whole[$next..-1]
    end
    set -l said
    if test (count $before) -gt 1
        set said $before[2..-1]
    end
    for answer in ($before[1] completion words -- (count $said) $said "$current" $after 2>/dev/null)
        if string match -q ':files*' -- $answer
            __fish_complete_path "$current"
        else
            printf '%s\n' $answer
        end
    end
end

complete -c vmess -f -k -a '(__vmess_complete)'
complete -c vmessctl -f -k -a '(__vmess_complete)'
"""

SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
