#!/bin/sh
# The experiments of docs/results.md, a day on two cores: `make results-runs`. The same
# command again goes on where it was. ROOT is a folder with train/ and test/, a folder of images per class.
# A job that fails, as a net that diverges does, is a result too; the next sweep follows all the same.
set -u
ROOT=${ROOT:-data/cifar10-jpeg}
JOBS=${JOBS:-2}
DATA="data=imagefolder data.root=$ROOT compile=false sweep.jobs=$JOBS"
NORMS='callbacks=[default,grad_norm]'

python train.py -m experiment=ablation/shortcuts sweep.name=shortcuts20 optimizer.lr=0.1 \
  model=resnet20 seed=0,1 "$NORMS" $DATA
python train.py -m experiment=ablation/shortcuts sweep.name=shortcuts56 optimizer.lr=0.1 \
  model=resnet56 model.shortcut=A,none "$NORMS" $DATA
# On a GPU: sweep.jobs_per_device=3 in place of sweep.jobs.
python train.py -m experiment=cifar10_short sweep.name=shortcut_types optimizer.lr=0.1 \
  model.shortcut=A,B,C,D,scale,gate,shortcut_gate,dropout,learned,none seed=0,1,2,3,4 $DATA
python train.py -m experiment=cifar10_short sweep.name=augment \
  augment=none,crop_flip,trivial,rand,mixup,cutmix seed=0,1,2,3,4 $DATA
python train.py -m experiment=ablation/batch_size sweep.name=batch_size \
  data.batch_size=64,128,512 trainer.max_epochs=4 $DATA
python train.py -m experiment=ablation/batchnorm sweep.name=batchnorm \
  optimizer.lr=0.003,0.03,0.3 trainer.max_epochs=4 $DATA
python train.py -m experiment=textbook_cnn,textbook_resnet \
  sweep.name=textbook trainer.max_epochs=4 seed=0 $DATA
python docs/results/side_by_side.py "$ROOT"

python docs/results/build.py take outputs/sweeps/shortcuts20 outputs/sweeps/shortcuts56 \
  outputs/sweeps/shortcut_types outputs/sweeps/augment \
  outputs/sweeps/batch_size outputs/sweeps/batchnorm outputs/sweeps/textbook outputs/side_by_side
