// Names of the statuses that launchers return.
#include "common.cuh"

extern "C" const char *msgl_status_name(int status) {
  if (status == MSGL_ERROR_UNSUPPORTED) return "MSGL_ERROR_UNSUPPORTED";
  return cudaGetErrorName(static_cast<cudaError_t>(status));
}

extern "C" const char *msgl_status_text(int status) {
  if (status == MSGL_ERROR_UNSUPPORTED) return "no kernel for these sizes or dtypes";
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}
