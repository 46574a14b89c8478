# kleiber on CPUs. This file was written without a Docker at hand and has never been built.
#
#   docker build -t kleiber .
#   docker run --rm -v "$PWD/multirun:/kleiber/multirun" kleiber train experiment=smoke logger=csv
#
# pip's default build of PyTorch includes the libraries for GPUs. To take the CPU build, pass the address of PyTorch's
# index for it: --build-arg PIP_EXTRA_INDEX_URL=ADDRESS
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL
COPY . /src
RUN pip install --no-cache-dir "/src[report]" && rm -r /src
ENV KLEIBER_CACHE=/cache
VOLUME /cache
WORKDIR /kleiber
ENTRYPOINT ["kleiber"]
