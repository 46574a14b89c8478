#!/bin/sh
# A night of proposals for train.py: changes that do nothing, good ones and bad ones, each decided by `kleiber gate`.
#
#     sh night.sh STREAM
#
# A change that is kept is part of all later proposals. Interrupted, the same command goes on.
set -u
cd "$(dirname "$0")" || exit 2
stream=${1:?"usage: sh night.sh STREAM"}
plain="train.py"

[ -e "$stream/gate.jsonl" ] || kleiber gate init "$stream" --command 'python train.py --seed={seed}' \
    --metric 'val_loss: ([0-9.]+)' --horizon 50 --timeout 600 || exit 2

propose() { # NAME, then the script with its options
    name=$1
    shift
    kleiber gate propose "$stream" --name "$name" --command "python $* --seed={seed}"
    code=$?
    case $code in
        0) plain="$*" ;;
        3 | 5) ;;
        *) exit $code ;;
    esac
}

# Nothing changes: a comment, a variable of another name, layers made in another order, other seeds, tiny changes.
variant() { # NAME and an expression of sed; the script has the name train_NAME.py
    sed "$2" train.py > "train_$1.py"
}
variant comment 's/^def main/# Trains the model.\ndef main/'
variant renamed 's/held_out/kept_for_later/g'
variant reseeded 's/torch.manual_seed(recipe.seed)/torch.manual_seed(recipe.seed + 1)/'
variant reordered 's/for embedding in (self.tokens, self.places)/for embedding in (self.places, self.tokens)/'

propose comment "train_comment.py"
propose "silu" "$plain --activation silu"
propose "width 48" "$plain --width 48"
propose "renamed variable" "$(echo "$plain" | sed 's/train.py/train_renamed.py/')"
propose "linear schedule" "$plain --schedule linear"
propose "weight decay 0.11" "$plain --weight-decay 0.11"
propose "dropout 0.3" "$plain --dropout 0.3"
propose "reordered" "$(echo "$plain" | sed 's/train.py/train_reordered.py/')"
propose "learning rate 0.005" "$plain --lr 0.005"
propose "clip 1.01" "$plain --clip 1.01"
propose "smoothing 0.2" "$plain --smoothing 0.2"
propose "two layers" "$plain --depth 2"
propose "beta2 0.991" "$plain --beta2 0.991"
propose "learning rate 1" "$plain --lr 1"
propose "squared ReLU" "$plain --activation relu2"
propose "warmup 11" "$plain --warmup 11"
propose "width 64" "$plain --width 64"
propose "other seeds" "$(echo "$plain" | sed 's/train.py/train_reseeded.py/')"
propose "batch 64" "$plain --batch 64"
propose "beta2 0.95" "$plain --beta2 0.95"
kleiber gate report "$stream"
