# Completion of `potluck` for fish. fish quotes the candidates of `potluck complete`.
function __potluck_complete
    set -l before (commandline --current-process --tokenize --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    set -l lines (potluck complete fish -- $before "$current" 2>/dev/null)
    if test "$lines[1]" = files
        __fish_complete_path "$current"
    else
        printf '%s\n' $lines[2..-1]
    end
end
complete --command potluck --no-files --keep-order --arguments '(__potluck_complete)'
