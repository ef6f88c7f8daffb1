"""What people type elsewhere, and what it is called here.

Words are in small letters without punctuation: "learningrate" stands for learning_rate,
learning-rate and LearningRate. In what is written here in their place, {} is the value that was
typed, {trunk} a net with ready weights. Where it depends on the value, a mapping says how; its key
"*" is for any other value. "" means that nothing is to be written: it is so anyway.
"""

from collections.abc import Mapping

Replacement = str | Mapping[str, str]

_ON, _OFF = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "none", "null")


def _switch(on: str, off: str = "", other: str = "") -> dict[str, str]:
    """Of a word that is on or off; `other` is for any other value, by default as if it were on."""
    return dict.fromkeys(_ON, on) | dict.fromkeys(_OFF, off) | {"*": other or on}


def _all(words: str, replacement: Replacement) -> dict[str, Replacement]:
    return dict.fromkeys(words.split(), replacement)


_MIXED = _switch("trainer.precision=16-mixed", "trainer.precision=32")
_PRECISIONS = {
    "16": "trainer.precision=16-mixed",
    "fp16": "trainer.precision=16-mixed",
    "float16": "trainer.precision=16-mixed",
    "half": "trainer.precision=16-mixed",
    "mixed": "trainer.precision=16-mixed",
    "bf16": "trainer.precision=bf16-mixed",
    "bfloat16": "trainer.precision=bf16-mixed",
    "fp32": "trainer.precision=32",
    "float32": "trainer.precision=32",
    "*": "trainer.precision={}",
}
_DEVICE = {
    "cuda": "trainer.accelerator=cuda",
    "gpu": "trainer.accelerator=gpu",
    "cpu": "trainer.accelerator=cpu",
    "mps": "trainer.accelerator=mps",
    "auto": "trainer.accelerator=auto",
    **{f"cuda{n}": f"trainer.accelerator=cuda trainer.devices=[{n}]" for n in range(8)},
    "*": "trainer.devices={}",
}
_GPU = _switch(
    "trainer.accelerator=gpu",
    "trainer.accelerator=cpu",
    "trainer.accelerator=gpu trainer.devices={}",
)
_GPUS = {  # a number of them: 1 is no switch
    "0": "trainer.accelerator=cpu",
    "1": "trainer.accelerator=gpu trainer.devices=1",
} | {k: v for k, v in _GPU.items() if k not in "01"}
_PRETRAINED = _switch("model=pretrained model.trunk={trunk}") | {
    "imagenet": "model=pretrained model.trunk={trunk}",
    "default": "model=pretrained model.trunk={trunk}",
    "*": "model=pretrained model.trunk={}",
}

_LOSS = {
    "crossentropy": "classifier.loss=ce",
    "crossentropyloss": "classifier.loss=ce",
    "binarycrossentropy": "classifier.loss=bce",
    "bcewithlogits": "classifier.loss=bce",
    "bcewithlogitsloss": "classifier.loss=bce",
    "*": "classifier.loss={}",
}
_SHORTCUT = _switch("model.shortcut=B", "model.shortcut=none", "model.shortcut={}")
_FINETUNE = _switch("model=pretrained model.trunk={trunk} model.freeze=none")
_CPU = _switch("trainer.accelerator=cpu", "trainer.accelerator=gpu")
_DEBUG = _switch("trainer.fast_dev_run=true", "", "trainer.fast_dev_run={}")
_EARLY = "callbacks=[default,early_stopping]"

KEYS: dict[str, Replacement] = {
    # optimizer and schedule
    **_all("learningrate baselr initlr initiallr maxlr stepsize", "optimizer.lr={}"),
    **_all("wd decay l2 weightdecay regularization", "optimizer.weight_decay={}"),
    **_all("optim opt optimiser optimizername", "optimizer={}"),
    **_all("sched schedule lrschedule lrscheduler lrpolicy schedulername", "scheduler={}"),
    **_all("warmupepochs warmup", "scheduler=cosine scheduler.warmup={}"),
    **_all("warmupsteps", "scheduler=cosine scheduler.unit=step scheduler.warmup={}"),
    # how long, how much
    **_all("epochs epoch nepochs numepochs nepoch maxepoch trainepochs", "trainer.max_epochs={}"),
    **_all("steps nsteps iterations iters maxiter maxiters", "trainer.max_steps={}"),
    **_all("bs batch trainbatchsize minibatch minibatchsize", "data.batch_size={}"),
    **_all("evalbatchsize testbatchsize valbatchsize", "data.eval_batch_size={}"),
    **_all("numworkers nworkers nproc jworkers", "data.workers={}"),
    # machine
    **_all("gpus ngpus numgpus ngpu", _GPUS),
    **_all("gpu cuda usecuda usegpu", _GPU),
    **_all("cpu usecpu nocuda nogpu", _CPU),
    **_all("device gpuid gpuids", _DEVICE),
    **_all("nodes nnodes machines", "trainer.num_nodes={}"),
    **_all("ddp distributed dataparallel", _switch("trainer.strategy=ddp trainer.devices=auto")),
    **_all("fp16 amp useamp half halfprecision mixedprecision autocast float16", _MIXED),
    **_all("bf16 bfloat16", _switch("trainer.precision=bf16-mixed", "trainer.precision=32")),
    **_all("dtype precision", _PRECISIONS),
    **_all("torchcompile", "compile={}"),
    # data
    **_all("dataset datasetname dataname", "data={}"),
    **_all("datapath datadir dataroot datafolder imagedir root", "data=imagefolder data.root={}"),
    **_all("nclasses nclass classes numclass numclasses numlabels", "data.num_classes={}"),
    **_all("imgsize imsize inputsize resolution cropsize imagesize", "data.image_size={}"),
    **_all("inchannels inputchannels", "data.channels={}"),
    **_all("valsplit validationsplit valratio valfraction validation", "data.val_size={}"),
    **_all("testratio testfraction", "data.test_size={}"),
    **_all("aug augmentation augmentations transform transforms", "augment={}"),
    **_all("randaugment randaug", _switch("augment=rand")),
    **_all("trivialaugment", _switch("augment=trivial")),
    **_all("autoaugment autoaug", _switch("augment=auto_cifar10")),
    **_all("horizontalflip hflip randomflip", "data.flip={}"),
    # net and loss
    **_all("arch architecture net network backbone modelname", "model={}"),
    **_all("pretrained pretrain transfer usepretrained", _PRETRAINED),
    **_all("finetune finetuning", _FINETUNE),
    **_all("skip skipconnection skipconnections residual", _SHORTCUT),
    **_all("layers nlayers numlayers", "model=cifar_resnet model.depth={}"),
    **_all("dropoutrate droprate", "model.dropout={}"),
    **_all("loss criterion lossfn lossfunction", _LOSS),
    **_all("smoothing labelsmooth", "classifier.label_smoothing={}"),
    # training
    **_all("clip gradclip clipgrad clipgradnorm maxnorm", "trainer.gradient_clip_val={}"),
    **_all("gradientclip gradientclipping maxgradnorm", "trainer.gradient_clip_val={}"),
    **_all("accumulate gradaccum accumgrad", "trainer.accumulate_grad_batches={}"),
    **_all("gradientaccumulation accumulationsteps", "trainer.accumulate_grad_batches={}"),
    **_all("gradientaccumulationsteps", "trainer.accumulate_grad_batches={}"),
    **_all("randomseed manualseed rngseed seedeverything", "seed={}"),
    **_all("earlystopping earlystop", _switch(_EARLY)),
    **_all("patience", f"{_EARLY} callbacks.early_stopping.patience={{}}"),
    **_all("ema useema", _switch("callbacks=[default,ema]")),
    **_all("debug dryrun fastdevrun", _DEBUG),
    **_all("wandb usewandb", _switch("logger=[tensorboard,wandb]")),
    **_all("mlflow", _switch("logger=[tensorboard,mlflow]")),
    **_all("tensorboard", _switch("logger=[tensorboard]", "logger=[]")),
    # places
    **_all("outputdir outputpath outdir outpath output out", "hydra.run.dir={}"),
    **_all("savedir savepath logdir workdir", "hydra.run.dir={}"),
    **_all("name runname expname experimentname", "hydra.run.dir=outputs/runs/{}"),
    **_all("exp", "experiment={}"),
    **_all("checkpoint ckpt ckptpath resumefrom resumefromcheckpoint", "resume={}"),
}

_TRUNKS = (
    *("vgg11", "vgg13", "vgg16", "vgg19"),
    *(f"vgg{n}_bn" for n in (11, 13, 16, 19)),
)


def _torch_optimizer(name: str, *left_out: str) -> str:
    """One of torch.optim that has no file here: with Adam's keys, but for some."""
    words = ["optimizer=adam", f"optimizer._target_=torch.optim.{name}", *left_out]
    return " ".join(words)


# Of a group: a choice that does not exist, or is called otherwise.
CHOICES: dict[str, dict[str, str]] = {
    "model": {
        **{name.replace("_", ""): f"model=pretrained model.trunk={name}" for name in _TRUNKS},
        "vgg": "model=pretrained model.trunk=vgg16",
        **{f"resnet{n}": f"model=cifar_resnet model.depth={n}" for n in (8, 14, 26, 38, 62)},
        **{f"plain{n}": f"model=resnet{n} model.shortcut=none" for n in (20, 32, 44, 56, 110)},
        **{f"preactresnet{n}": f"model=preresnet{n}" for n in (18, 110, 164, 1001)},
        "cnn": "model=textbook_cnn",
        "wideresnet": "model=wrn28_10",
        "wideresnet2810": "model=wrn28_10",
        "wideresnet50": "model=wide_resnet50_2",
        "resnext": "model=resnext50_32x4d",
        "resnext50": "model=resnext50_32x4d",
        "resnext29": "model=resnext29_8x64d",
        "senet": "model=seresnet50",
        "transfer": "model=pretrained",
    },
    "optimizer": {
        "rmsprop": _torch_optimizer("RMSprop", "~optimizer.betas"),
        "adagrad": _torch_optimizer("Adagrad", "~optimizer.betas"),
        "adadelta": _torch_optimizer("Adadelta", "~optimizer.betas"),
        "nadam": _torch_optimizer("NAdam"),
        "radam": _torch_optimizer("RAdam"),
        "adamax": _torch_optimizer("Adamax"),
        "momentum": "optimizer=sgd",
        "nesterov": "optimizer=sgd",
        "schedulefree": "optimizer=schedulefree_sgd",
    },
    "scheduler": {
        "step": "scheduler=multistep",
        "steplr": "scheduler=multistep",
        "multisteplr": "scheduler=multistep",
        "cosineannealing": "scheduler=cosine",
        "cosineannealinglr": "scheduler=cosine",
        "onecyclelr": "scheduler=onecycle",
        "constantlr": "scheduler=constant",
        "none": "scheduler=constant",
        "null": "scheduler=constant",
    },
    "data": {
        "cifar": "data=cifar10",
        "mnist": "data=digits",
        "folder": "data=imagefolder data.root=FOLDER",
        "images": "data=imagefolder data.root=FOLDER",
        "custom": "data=imagefolder data.root=FOLDER",
        "imagenet1k": "data=imagenet data.root=FOLDER",
    },
    "augment": {
        "randaugment": "augment=rand",
        "randaug": "augment=rand",
        "trivialaugment": "augment=trivial",
        "autoaugment": "augment=auto_cifar10",
        "randomerasing": "augment=erasing",
        "colorjitter": "augment=color",
        "default": "augment=crop_flip",
        "false": "augment=none",
        "null": "augment=none",
    },
    "callbacks": {"none": "callbacks=[]", "null": "callbacks=[]", "stop": _EARLY},
    "logger": {"none": "logger=[]", "null": "logger=[]", "false": "logger=[]"},
    "trainer": {
        "cpu": "trainer.accelerator=cpu",
        "gpu": "trainer.accelerator=gpu",
        "cuda": "trainer.accelerator=cuda",
        "mps": "trainer.accelerator=mps",
        "ddp": "trainer.strategy=ddp trainer.devices=auto",
    },
    "hydra/launcher": {
        "local": "hydra/launcher=lab",
        "submitit": "hydra/launcher=slurm",
        "submititslurm": "hydra/launcher=slurm",
    },
    "hydra/sweeper": {"grid": "hydra/sweeper=lab", "search": "hydra/sweeper=optuna"},
}

# The nets that model=pretrained can start from when a choice of `model` asks for it.
TRUNKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", *_TRUNKS)
