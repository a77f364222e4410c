"""A node on which every check of `doctor` passes."""

from twostream_ray.runs.doctor.facts import AcceleratorFacts, NodeFacts, StoreFacts

VERSIONS = {"twostream_ray": "0.1.0", "ray": "2.60.0", "torch": "2.15.0", "pyarrow": "25.0.1", "av": "18.1.0"}
GPU = AcceleratorFacts(device="H100", nccl="2.30.7")
HEALTHY = NodeFacts(
    node="gpu-1",
    python="3.11.7",
    versions=VERSIONS,
    torch_cuda="13.2",
    driver="580.65.06",
    driver_cuda=(13, 0),
    gpus=("H100", "H100"),
    gpu_bytes=80 << 30,
    ray_gpus=2,
    video_library=True,
    cpus=32,
    ray_cpus=32,
    memory_bytes=256 << 30,
    shm_bytes=64 << 30,
    object_store_bytes=40 << 30,
    open_files=65536,
    temporary_free_bytes=500 << 30,
    cache_free_bytes=500 << 30,
    auth_mode="token",
    clock_error_s=0.001,
    store=StoreFacts(uri="s3://b/s", first_byte_s=0.02, bytes_per_second=500e6),
    sees_storage=True,
    accelerator=GPU,
)
