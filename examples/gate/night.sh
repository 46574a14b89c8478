#!/bin/sh
# A night of proposals for train.py: changes that do nothing, good ones and bad ones, each decided by `kleiber gate`.
#
#     sh night.sh STREAM
#
# A change that is kept is part of all later proposals. Interrupted, the same command goes on.
set -u
cd "$(dirname "$0")" || exit 2
stream=${1:?"usage: sh night.sh STREAM"}
plain="train.py --steps 2500"

[ -e "$stream/gate.jsonl" ] || kleiber gate init "$stream" --command "python $plain --seed={seed}" \
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
variant unused 's/^    return parser.parse_args()/    parser.add_argument("--note", default="")\n&/'
variant reordered 's/for embedding in (self.tokens, self.places)/for embedding in (self.places, self.tokens)/'

propose comment "$(echo "$plain" | sed 's/train.py/train_comment.py/')"
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
propose "tied embeddings" "$plain --tie"
propose "learning rate 0.0021" "$plain --lr 0.0021"
propose "two heads" "$plain --heads 2"
propose "cosine schedule" "$plain --schedule cosine"
propose "unused option" "$(echo "$plain" | sed 's/train.py/train_unused.py/')"
propose "half the steps" "$plain --steps 1250"
propose "ReLU" "$plain --activation relu"
propose "batch 65" "$plain --batch 65"
propose "dropout 0.05" "$plain --dropout 0.05"
propose "learning rate 0.01" "$plain --lr 0.01"
propose "smoothing 0.001" "$plain --smoothing 0.001"
propose "width 16" "$plain --width 16"
propose "warmup 100" "$plain --warmup 100"
propose "weight decay 1" "$plain --weight-decay 1"
propose "eight heads" "$plain --heads 8"
propose "warmup 9" "$plain --warmup 9"
propose "clip 0.1" "$plain --clip 0.1"
propose "width 96" "$plain --width 96"
propose "beta2 0.9" "$plain --beta2 0.9"
propose "three layers" "$plain --depth 3"
kleiber gate report "$stream"
