#!/bin/sh
# Trains the models of docs/tutorials/chat.md, from text that every machine has, and exports them as Hugging Face folders.
#
#     sh train.sh [FOLDER]
#
# FOLDER (models unless given) gets base, a model of documentation, and chat, which answers questions. The runs are in
# multirun/models_base and models_chat. Interrupted, the same command goes on. PRECISION=bf16 is faster on a processor
# that computes in it.
set -eu
python=${PYTHON:-python}
here=$(dirname "$0")
folder=${1:-models}
precision=${PRECISION:-32}
mkdir -p "$folder"

run() { ls -dt "multirun/models_$1"/gpt-* | head -n 1; } # the newest: another PRECISION is another run

train() { # NAME, then overrides
    name=$1
    shift
    "$python" -m kleiber train "name=models_$name" "trainer.precision=$precision" "$@"
}

write() { # NAME: exports its run, unless that was done before
    [ -e "$folder/$1" ] || "$python" -m kleiber export "$(run "$1")" "$folder/$1"
}

train base model.width=256 model.depth=4 model.num_heads=8 model.context=256 data.tokenizer=bpe data.vocab_size=2048 \
    optimizer.lr=0.02 budget.tokens=6M eval.tokens=256K eval.every_steps=500
write base

[ -e "$folder/questions.jsonl" ] || "$python" "$here/questions.py" "$folder/questions.jsonl"
train chat init=checkpoint "init.path=$(run base)" objective=sft data=instruct "data.path=$folder/questions.jsonl" \
    optimizer.lr=0.01 budget.tokens=3M eval.tokens=128K
write chat
