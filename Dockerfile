# rankwise in the versions of constraints.txt:
#
#     docker build --tag rankwise .                          PyPI's PyTorch, which brings CUDA: the host needs a driver alone
#     docker build --tag rankwise --build-arg TORCH=cpu .    PyTorch for the CPU: 5 GB less
#     docker run --rm --gpus all --volume "$PWD/studies:/work/studies" rankwise run
FROM python:3.13-slim-trixie

# cpu, or cu130 and the like, as uv's --torch-backend takes them; empty: what PyPI has
ARG TORCH=
# train, ray, quantization, torchao; several with commas
ARG EXTRAS=train

# Triton compiles the start of its kernels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN python -m pip install --no-cache-dir --constraint /src/constraints.txt uv \
    && uv pip install --system --no-cache ${TORCH:+--torch-backend "$TORCH"} \
        --constraint /src/constraints.txt "/src[$EXTRAS]" \
    && rm -rf /src

RUN useradd --create-home --uid 1000 rankwise && mkdir --parents /work/studies && chown -R rankwise /work
USER 1000
WORKDIR /work
ENTRYPOINT ["rankwise"]
