# evomerge for NVIDIA GPUs (driver 580 or newer, for CUDA 13):
#   docker build --tag evomerge .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/work" \
#     evomerge search campaign.yaml
# The hub's cache is /work/.cache/huggingface, within the folder that is mounted.

# torch's wheels bring CUDA's libraries; of the image only the way to the host's driver is needed.
# Ubuntu 24.04 has Python 3.12.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# A C++ compiler and Python's headers: torch compiles element-wise merges where it runs.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# A user without rights, whose home any other user (`--user`) may write to as well.
RUN useradd --create-home evomerge \
    && chmod 1777 /home/evomerge \
    && mkdir --mode 1777 /work

# Only what is installed is copied, so that changes of docs and tests install nothing again.
WORKDIR /opt/evomerge
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY evomerge ./evomerge
COPY search_spaces/quickstart ./search_spaces/quickstart
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[compare]'

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/evomerge \
    USER=evomerge \
    HF_HOME=/work/.cache/huggingface
USER evomerge
WORKDIR /work
ENTRYPOINT ["evomerge"]
CMD ["--help"]
