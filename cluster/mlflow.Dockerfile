# The image of mlflow.yaml: MLflow's server with its login, and what speaks to PostgreSQL and S3.
# From the repository's root:
#   docker build -f cluster/mlflow.Dockerfile -t registry.example.com/twostream-mlflow:3.17.2 .
FROM python:3.11.14-slim-bookworm
COPY constraints.txt .
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
      "mlflow[auth]==3.17.2" boto3==1.43.117 psycopg2-binary==2.9.13 \
    && useradd --create-home --uid 1000 --gid 100 mlflow
ENV MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
USER mlflow
WORKDIR /home/mlflow
