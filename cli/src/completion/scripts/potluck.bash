# Completion of `potluck` for bash. Candidates come quoted from `potluck complete`.
_potluck() {
    local kind line
    COMPREPLY=()
    {
        IFS= read -r kind || return 0
        if [[ $kind == files ]]; then
            # Without candidates, bash completes the names of files.
            compopt -o filenames -o bashdefault -o default 2>/dev/null
            return 0
        fi
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done
    } < <(potluck complete bash -- "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
}
if [[ ${BASH_VERSINFO[0]} -gt 4 || (${BASH_VERSINFO[0]} -eq 4 && ${BASH_VERSINFO[1]} -ge 4) ]]; then
    complete -o nosort -F _potluck potluck
else
    complete -F _potluck potluck
fi
