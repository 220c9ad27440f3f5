#include <cub/cub.cuh>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cublas_v2.h>

#include <cmath>

static __global__ void scale(half * x, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        x[i] = __float2half(__half2float(x[i]) * factor);
    }
}

extern "C" int scale_on_device(half * x, float factor, int n) {
    CUdevice device = 0;
    cublasHandle_t handle = nullptr;
    if (cuDeviceGet(&device, 0) != CUDA_SUCCESS || cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
        return 1;
    }
    scale<<<(n + 255) / 256, 256>>>(x, factor, n);
    return cudaGetLastError() == cudaSuccess ? 0 : 1;
}
