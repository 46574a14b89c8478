#!/bin/sh
# A night of proposals for a small recipe of kleiber: overrides, and commits that change its code.
#
#     sh night_kleiber.sh STREAM
#
# It runs in a checkout of kleiber from which kleiber is installed (pip install -e .), and makes its commits in worktrees
# of their own, on no branch. A change that is kept is part of all later proposals. Interrupted, the same command goes on.
set -u
stream=$(realpath -m "${1:?"usage: sh night_kleiber.sh STREAM"}")
cd "$(dirname "$0")/../.." || exit 2

[ -e "$stream/gate.jsonl" ] || kleiber gate init "$stream" --horizon 50 --timeout 900 --measure loss --overrides \
    "model=gpt model.width=32 data=builtin budget.tokens=500K eval.tokens=300K optimizer.lr=0.005 logger=csv" || exit 2

propose() { # NAME, then options of kleiber gate propose
    name=$1
    shift
    kleiber gate propose "$stream" --name "$name" "$@"
    code=$?
    [ $code != 1 ] || { # a run failed: once more, then it is discarded
        kleiber gate propose "$stream" --name "$name" "$@"
        code=$?
    }
    case $code in
        0 | 3 | 5) ;;
        *) exit $code ;;
    esac
}

commit() { # NAME, FILE and an expression of sed: prints a commit with that change, the same one each time
    place="$stream/commits/$1"
    [ -e "$place" ] || {
        git worktree add --quiet --detach "$place" HEAD && sed -i "$3" "$place/$2" &&
            git -C "$place" -c user.name=night -c user.email=night@localhost commit --quiet --all --message "$1"
    } || exit 2
    git -C "$place" rev-parse HEAD
}

# Nothing changes: a comment, a variable of another name, layers made in another order, other seeds, tiny changes.
comment=$(commit comment src/kleiber/nn/mlp.py 's/^class SwiGLU/# An MLP with a gate.\nclass SwiGLU/') || exit 2
renamed=$(commit renamed src/kleiber/training/step.py 's/method_counts/counts_of_method/g') || exit 2
reordered=$(commit reordered src/kleiber/nn/mlp.py \
    '/self.gate_up = site.hidden/{h;d};/self.down = site.projection(self.hidden)/{G;:done;n;b done}') || exit 2
reseeded=$(commit reseeded src/kleiber/training/step.py 's/manual_seed(seed)/manual_seed(seed + 1)/') || exit 2

propose "comment" --ref "$comment"
propose "rate 0.02" --overrides "optimizer.lr=0.02"
propose "weight decay 0.001" --overrides "optimizer.weight_decay=0.001"
propose "width 48" --overrides "model.width=48"
propose "dropout 0.3" --overrides "model.dropout=0.3"
propose "renamed variable" --ref "$renamed"
propose "GELU" --overrides "model/mlp=gelu"
propose "epsilon of norms 1.1e-5" --overrides "model.norm_eps=1.1e-5"
propose "cosine" --overrides "schedule=cosine"
propose "reordered" --ref "$reordered"
propose "rate 1" --overrides "optimizer.lr=1"
propose "clip 1.01" --overrides "optimizer.clip=1.01"
propose "untied head" --overrides "model.tied=false"
propose "batch 2,048" --overrides "batch.tokens=2048"
propose "z-loss 1e-6" --overrides "objective.z_loss=1e-6"
propose "norms after the residual" --overrides "model.norm=post"
propose "other seeds" --ref "$reseeded"
propose "squared ReLU" --overrides "model/mlp=relu2"
propose "second moment 0.951" --overrides "optimizer.betas=[0.9,0.951]"
propose "three layers" --overrides "model.depth=3"
propose "no QK-norm" --overrides "model.qk_norm=false"
propose "rotations 10,100" --overrides "model.rope_theta=10100"
propose "weight decay 0.1" --overrides "optimizer.weight_decay=0.1"
propose "one KV head" --overrides "model.num_kv_heads=1"
propose "decay 0.21" --overrides "schedule.decay=0.21"
propose "no positions" --overrides "model.positions=none"
propose "decay 0.5" --overrides "schedule.decay=0.5"
propose "LayerNorm" --overrides "model.norm_type=layernorm"
propose "last rate 0.001" --overrides "schedule.final=0.001"
propose "batch 1,024" --overrides "batch.tokens=1024"
propose "soft cap 50" --overrides "model.soft_cap=50"
propose "first moment 0.8" --overrides "optimizer.betas=[0.8,0.95]"
propose "rate 0.0201" --overrides "optimizer.lr=0.0201"
propose "width 64" --overrides "model.width=64"
propose "two future tokens" --overrides "model.future=1"
propose "standard parametrization" --overrides "model/parametrization=standard"
propose "SGD" --overrides "optimizer=sgd optimizer.lr=0.02"
propose "rate 0.03" --overrides "optimizer.lr=0.03"
propose "mixture" --overrides "model=moe"
propose "Muon" --overrides "optimizer=muon optimizer.lr=0.02"
kleiber gate report "$stream"
