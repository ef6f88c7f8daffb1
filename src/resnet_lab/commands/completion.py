"""Completion by the Tab key for bash, zsh and fish."""

import argparse
import shlex
import sys

from resnet_lab.commands import describe

# Each asks `python -P -m resnet_lab.complete`, and leaves every other Python program as it was. -P:
# no module is imported from the current folder, which may be anybody's.
BASH = r"""
_resnet_lab() {
    local line typed=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(PYTHON -P -m resnet_lab.complete bash "$typed" "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o nospace -o bashdefault -o default -F _resnet_lab resnet-lab train.py
for _resnet_lab_name in python python3; do
    complete -p $_resnet_lab_name >/dev/null 2>&1 ||
        complete -o nospace -o bashdefault -o default -F _resnet_lab $_resnet_lab_name
done
unset _resnet_lab_name
"""

ZSH = r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_resnet_lab() {
    local line word
    local -a before whole whole_texts open open_texts
    before=("${(@Q)words[1,CURRENT-1]}")
    while IFS= read -r line; do
        word=${line%%$'\t'*}
        if [[ $word == *[=./] ]]; then
            open+=("$word")
            open_texts+=("$word  ${line#*$'\t'}")
        else
            whole+=("$word")
            whole_texts+=("$word  ${line#*$'\t'}")
        fi
    done < <(PYTHON -P -m resnet_lab.complete zsh "${(Q)PREFIX}" "${before[@]}" 2>/dev/null)
    (( $#open )) && compadd -l -S '' -d open_texts -a open
    (( $#whole )) && compadd -l -d whole_texts -a whole
    (( $#open + $#whole )) || _files
}
_resnet_lab_python() {
    if [[ ${words[2]:t} == train.py ]] && (( CURRENT > 2 )); then
        _resnet_lab
    else
        _python
    fi
}
compdef _resnet_lab resnet-lab train.py
compdef _resnet_lab_python python python3
"""

FISH = r"""
function __resnet_lab
    set -l current (commandline -ct | string unescape)
    PYTHON -P -m resnet_lab.complete fish "$current" (commandline -opc) 2>/dev/null
end
function __resnet_lab_trains
    set -l words (commandline -opc)
    test (count $words) -ge 2; or return 1
    test (basename -- $words[2]) = train.py; and test -e (dirname -- $words[2])/conf/train.yaml
end
complete -c resnet-lab -f -a '(__resnet_lab)'
complete -c train.py -f -a '(__resnet_lab)'
for name in python python3
    complete -c $name -n __resnet_lab_trains -f -a '(__resnet_lab)'
end
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Prints a script that lets the Tab key complete commands, options, keys, choices and run "
        "folders, of resnet-lab and of python train.py. Put the line for your shell into its "
        "start-up file: ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.",
        'eval "$(resnet-lab completion bash)"\n'
        'eval "$(resnet-lab completion zsh)"\n'
        "resnet-lab completion fish | source",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], metavar="bash|zsh|fish")


def run(options: argparse.Namespace) -> int:
    print(SCRIPTS[options.shell].strip().replace("PYTHON", shlex.quote(sys.executable)))
    return 0
