# CPU: docker build -t resnet-lab .
# CUDA: docker build -t resnet-lab --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .
# Run: docker run --rm -v "$PWD/outputs:/lab/outputs" resnet-lab train   (on a GPU: --gpus all)
ARG BASE=python:3.12-slim
FROM ${BASE}
# The CUDA images bring no Python.
RUN command -v python3 >/dev/null && python3 -m venv --help >/dev/null || \
    (apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/venv && useradd --create-home lab && install -d -o lab /lab/outputs /lab/data
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY . /opt/resnet-lab
RUN pip install --no-cache-dir -c /opt/resnet-lab/constraints.txt "/opt/resnet-lab[optuna,optim]"
USER lab
WORKDIR /lab
ENTRYPOINT ["resnet-lab"]
