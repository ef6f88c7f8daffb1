"""What a CUDA device can do at most, to hold the nets' speed against."""

import torch

from resnet_lab.bench.gate import Gate
from resnet_lab.bench.training import now

SIDE = 8192  # of the square matrices
COPIED = 1 << 30  # bytes
TIMES = 20


def rates(gate: Gate) -> None:
    """Large bf16 matrix products in FLOP/s, and a large copy in bytes/s read and written."""
    cuda = torch.device("cuda")
    a, b = (torch.randn(SIDE, SIDE, device=cuda, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    there, here = (torch.zeros(COPIED, device=cuda, dtype=torch.uint8) for _ in range(2))
    gate.wait()
    while True:
        began = now(cuda)
        for _ in range(TIMES):
            torch.mm(a, b, out=product)
        multiplied = now(cuda)
        for _ in range(TIMES):
            here.copy_(there)
        copied = now(cuda)
        gate.wait(
            flops=TIMES * 2 * SIDE**3 / (multiplied - began),
            bandwidth=TIMES * 2 * COPIED / (copied - multiplied),
        )
