// Moving one block of LayoutId::kCpuPanel16 between canonical rows and its packed order.
#ifndef NIBBLE_PACK_PANEL16_H_
#define NIBBLE_PACK_PANEL16_H_

#include <cstdint>

namespace nibble {

inline constexpr int kPanelRows = 16;
inline constexpr int kBlockColumns = 32;

/// 32 columns of 16 rows. `rows[r]` points at the block's first canonical byte of packed row r:
/// 16 bytes each for 4-bit codes, 32 for 8-bit ones. Every stored code is XORed with `code_xor`
/// (a nibble for 4 bits). `out` gets 256 or 512 bytes.
void pack_block_4bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);
void pack_block_8bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);

/// The inverse: writes 16 or 32 canonical bytes at each `rows[r]`.
void unpack_block_4bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);
void unpack_block_8bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);

}  // namespace nibble

#endif  // NIBBLE_PACK_PANEL16_H_
