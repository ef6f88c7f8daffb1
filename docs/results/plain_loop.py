"""ResNet-20 on an image folder with PyTorch alone, as a course would train it.

    python docs/results/plain_loop.py data/cifar10-jpeg outputs/plain --seed 0 --epochs 3

Float32, torchvision's transforms on PIL images in two worker processes, loss and accuracy read
after every step; on a GPU where there is one. The net is this project's, and recipe and files are
those of `experiment=cifar10_short` with `data.val_size=0.1`: what docs/results.md compares is the
loop.
Writes result.json and metrics.csv with columns that a run of ours has.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from resnet_lab.models.resnet import cifar_resnet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
LR, BATCH, VAL_SIZE = 0.3, 128, 5000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = ("epoch", "train/loss", "train/acc", "val/loss", "val/acc", "train_seconds")


def evaluate(net: nn.Module, loader: DataLoader, criterion: nn.Module) -> tuple[float, float]:
    """Mean loss and accuracy."""
    net.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in loader:
            images, labels = (part.to(DEVICE) for part in batch)
            outputs = net(images)
            loss += criterion(outputs, labels).item() * len(labels)
            correct += (outputs.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, correct / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path, help="a folder with train/ and test/")
    parser.add_argument("out", type=Path, help="where result.json and metrics.csv go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    begun = time.perf_counter()
    torch.manual_seed(args.seed)
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    augment = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), plain]
    )
    order = torch.randperm(len(ImageFolder(args.root / "train").samples)).tolist()
    train_set = Subset(ImageFolder(args.root / "train", augment), order[VAL_SIZE:])
    val_set = Subset(ImageFolder(args.root / "train", plain), order[:VAL_SIZE])
    test_set = ImageFolder(args.root / "test", plain)
    train_loader = DataLoader(train_set, BATCH, shuffle=True, drop_last=True, num_workers=2)
    val_loader = DataLoader(val_set, BATCH, num_workers=2)
    test_loader = DataLoader(test_set, BATCH, num_workers=2)

    net = cifar_resnet(20, num_classes=10).to(DEVICE)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        net.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        LR,
        total_steps=args.epochs * len(train_loader),
        cycle_momentum=False,
        final_div_factor=400,
    )

    args.out.mkdir(parents=True)
    with (args.out / "metrics.csv").open("w", newline="") as file:
        metrics = csv.writer(file)
        metrics.writerow(
            ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "train_seconds"]
        )
        for epoch in range(1, args.epochs + 1):
            net.train()
            start, losses, correct = time.perf_counter(), 0.0, 0
            for batch in train_loader:
                images, labels = (part.to(DEVICE) for part in batch)
                optimizer.zero_grad()
                outputs = net(images)
                loss = criterion(outputs, labels)
                loss.backward()
                optimizer.step()
                scheduler.step()
                losses += loss.item()
                correct += (outputs.argmax(1) == labels).sum().item()
            seconds = time.perf_counter() - start
            val_loss, val_acc = evaluate(net, val_loader, criterion)
            accuracy = correct / (len(train_loader) * BATCH)
            mean_loss = losses / len(train_loader)
            metrics.writerow([epoch, mean_loss, accuracy, val_loss, val_acc, round(seconds, 3)])
            print(f"epoch {epoch}   train {mean_loss:.4f} {accuracy:.4f}   val {val_acc:.4f}")
    test_loss, test_acc = evaluate(net, test_loader, criterion)
    result = {
        "status": "finished",
        "model": "resnet20",
        "seed": args.seed,
        "epochs": args.epochs,
        "n_train": len(train_set),
        "n_val": len(val_set),
        "n_test": len(test_set),
        "val/acc": val_acc,
        "test/acc": test_acc,
        "test/loss": test_loss,
        "seconds": round(time.perf_counter() - begun, 3),
        "versions": {"torch": torch.__version__},
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
