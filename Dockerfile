# The app in a container. This file has not been built: where it was written there is no container engine.
#
#   docker build -t bothways .
#   docker run -p 7860:7860 bothways
#   docker run -p 7860:7860 -v "$PWD/outputs:/judges:ro" bothways --judge /judges/demo/ab /judges/demo/ba
#   docker run -p 7860:7860 -e JUDGE=USER/JUDGE bothways
#
# pip takes torch's CUDA build, of several GB: for a CPU give the index of torch's CPU builds, which its installation
# page names, with --build-arg TORCH_INDEX=...; for a GPU run with --gpus all.
FROM python:3.11-slim

ARG TORCH_INDEX=""
WORKDIR /opt/bothways
COPY constraints.txt .
# torch first and by itself, so that a change of the code does not fetch it again.
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY modeling modeling
COPY scripts scripts
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt ".[app,demo]"

# A user without rights, whose home holds what is downloaded from the Hub.
RUN useradd --create-home --uid 1000 bothways
USER bothways
WORKDIR /home/bothways
# Made here, because a volume that is mounted on a missing folder belongs to root.
RUN mkdir .cache

ENV JUDGE=""
EXPOSE 7860
# The judge from JUDGE (one or more folders or Hub ids, with spaces between), unless --judge is among the arguments; the
# default judge if neither names one.
ENTRYPOINT ["/bin/sh", "-c", "exec bothways app --host 0.0.0.0 --port 7860 ${JUDGE:+--judge $JUDGE} \"$@\"", "bothways"]
