// Moving one block of LayoutId::kCudaFrag16 between canonical rows and its packed order.
#ifndef NIBBLE_PACK_FRAG16_H_
#define NIBBLE_PACK_FRAG16_H_

#include "pack/panel16.h"

namespace nibble {

inline constexpr int kFragmentColumns = 64;

/// 64 columns of 16 rows. `rows[r]` points at the block's first canonical byte of packed row r:
/// 32 bytes each for 4-bit codes, 64 for 8-bit ones. Every stored code is XORed with `code_xor`
/// (a nibble for 4 bits). `out` gets 512 or 1024 bytes.
void pack_fragment_4bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);
/// nf4: the same with pairs of a table in a byte.
void pack_fragment_table(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);
void pack_fragment_8bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);

/// The inverse: writes 32 or 64 canonical bytes at each `rows[r]`.
void unpack_fragment_4bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);
void unpack_fragment_table(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);
void unpack_fragment_8bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);

}  // namespace nibble

#endif  // NIBBLE_PACK_FRAG16_H_
