#compdef potluck
# Completion of `potluck` for zsh. zsh quotes the candidates of `potluck complete`.
_potluck() {
    local -a lines values shown
    local line
    lines=("${(@f)$(potluck complete zsh -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    if [[ $lines[1] == files ]]; then
        _files
        return
    fi
    for line in "${(@)lines[2,-1]}"; do
        values+=("${line%%$'\t'*}")
        if [[ -n ${line#*$'\t'} ]]; then
            shown+=("${line%%$'\t'*}  -- ${line#*$'\t'}")
        else
            shown+=("${line%%$'\t'*}")
        fi
    done
    compadd -l -V potluck -d shown -a -- values
}
if [[ $funcstack[1] == _potluck ]]; then
    _potluck "$@"
else
    compdef _potluck potluck
fi
