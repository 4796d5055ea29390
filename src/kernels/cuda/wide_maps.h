// The tensor maps of a wide kernel (wide.cuh). Needs the CUDA headers, which wide.h does not.
#ifndef NIBBLE_KERNELS_CUDA_WIDE_MAPS_H_
#define NIBBLE_KERNELS_CUDA_WIDE_MAPS_H_

#include <cuda.h>

namespace nibble {

/// Where the copy engine finds the operands of a call.
struct WideMaps {
  CUtensorMap x;       ///< [m][k] in boxes of tokens x 64 columns, or of several such blocks
  CUtensorMap codes;   ///< [panels][blocks][512 bytes]
  CUtensorMap scales;  ///< [panels][blocks, or groups where they are longer][values of one]
  CUtensorMap zeros;   ///< likewise
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_WIDE_MAPS_H_
