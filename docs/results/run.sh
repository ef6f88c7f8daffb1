#!/bin/sh
# The experiments of docs/results.md: `make results-runs`, or by name `sh docs/results/run.sh depth
# augment`. The same command again goes on where it was; what is finished is not run again.
# ROOT is a folder with train/ and test/, a folder of images per class; JOBS run side by side; what
# EXTRA holds is added to every command (trainer.precision=32, callbacks=...). On a GPU JOBS=5 and
# OMP_NUM_THREADS=1, in two shells with different names, keep an H100 busy.
# A job that fails, as a net that diverges does, is a result too; the next sweep follows all the same.
set -u
ROOT=${ROOT:-data/cifar10-jpeg}
JOBS=${JOBS:-2}
EXTRA=${EXTRA:-}
ONLY=${*:-}

wanted() { # NAME: is it to be run?
  [ -z "$ONLY" ] || case " $ONLY " in *" $1 "*) ;; *) return 1 ;; esac
}

sweep() { # NAME OVERRIDES...
  name=$1
  shift
  ! wanted "$name" || python train.py -m "$@" sweep.name="$name" data=imagefolder data.root="$ROOT" \
    compile=false sweep.jobs="$JOBS" $EXTRA
}

sweep he2015 experiment=he2015/resnet20,he2015/plain20 seed=0
sweep depth experiment=ablation/depth model=resnet56,resnet20,resnet44,resnet32 seed=0,1,2
sweep shortcuts20 experiment=ablation/shortcuts optimizer.lr=0.1 model=resnet20 seed=0,1 \
  'callbacks=[default,grad_norm]'
sweep shortcuts56 experiment=ablation/shortcuts optimizer.lr=0.1 model=resnet56 \
  model.shortcut=A,none 'callbacks=[default,grad_norm]'
sweep shortcut_types experiment=cifar10_short optimizer.lr=0.1 \
  model.shortcut=A,B,C,D,scale,gate,shortcut_gate,dropout,none seed=0,1,2,3,4
sweep augment experiment=cifar10_short augment=none,crop_flip,trivial,rand,mixup,cutmix \
  seed=0,1,2,3,4
sweep augment30 experiment=cifar10_short augment=none,crop_flip,trivial,rand,mixup,cutmix \
  trainer.max_epochs=30 seed=0,1
sweep batch_size experiment=ablation/batch_size data.batch_size=64,128,256,512 \
  trainer.max_epochs=6 seed=0,1,2
sweep batchnorm experiment=ablation/batchnorm model.zero_init_residual=false,true \
  optimizer.lr=0.003,0.03,0.1,0.3 trainer.max_epochs=4 seed=0,1
sweep textbook experiment=textbook_cnn,textbook_resnet,textbook_resnet_plain_recipe seed=0

# Does bfloat16 cost accuracy? Eight pairs, and the plain loop beside them. On a GPU "32-true" alone
# would round the inputs of convolutions to TF32.
export NVIDIA_TF32_OVERRIDE=0
sweep precision experiment=cifar10_short data.val_size=0.1 trainer.max_epochs=3 \
  trainer.precision=32-true,bf16-mixed seed=0,1,2,3,4,5,6,7
if wanted plain_loop; then
  for seed in 0 1 2 3 4 5 6 7; do
    out=outputs/sweeps/plain_loop/seed=$seed
    [ -e "$out/result.json" ] || { rm -rf "$out" && # what was cut off
      python docs/results/plain_loop.py "$ROOT" "$out" --seed $seed --epochs 3; }
  done
fi
unset NVIDIA_TF32_OVERRIDE
! wanted side_by_side || python docs/results/side_by_side.py "$ROOT"

echo "finished sweeps go beside the page by: python docs/results/build.py take outputs/sweeps/NAME"
