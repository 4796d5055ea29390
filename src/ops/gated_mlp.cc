#include <algorithm>
#include <mutex>

#include "nibble/ops.h"

namespace nibble {

struct GatedMlp::State {
  Linear gate_up, down;
  Activation activation;
  int64_t band_rows;
  mutable std::mutex own_workspace_mutex;
  mutable Buffer own_workspace;

  State(Linear g, Linear d, Activation a, int64_t rows)
      : gate_up(std::move(g)), down(std::move(d)), activation(a), band_rows(rows) {}

  int64_t intermediate() const { return gate_up.info().output_columns(); }
  /// The workspace holds the intermediate of one band, then whatever the two products need.
  int64_t intermediate_bytes(int64_t m, DType x_dtype) const {
    return round_up(std::min(m, band_rows) * intermediate() * dtype_bytes(x_dtype),
                    kWorkspaceAlign);
  }
};

Result<GatedMlp> GatedMlp::create(PackedWeight gate_up, PackedWeight down, Activation activation,
                                  LinearOptions options) {
  if (!gate_up.info.paired()) {
    return invalid_argument("gate_up is packed as " + gate_up.info.layout.name() +
                            "; a paired layout is needed");
  }
  if (gate_up.info.n / 2 != down.info.k) {
    return invalid_argument("gate_up has " + std::to_string(gate_up.info.n / 2) +
                            " intermediate columns, down has k = " + std::to_string(down.info.k));
  }
  const int64_t band_rows = options.band_rows;
  NIBBLE_ASSIGN_OR_RETURN(Linear first, Linear::create(std::move(gate_up), options));
  NIBBLE_ASSIGN_OR_RETURN(Linear second, Linear::create(std::move(down), std::move(options)));
  return GatedMlp(
      std::make_unique<State>(std::move(first), std::move(second), activation, band_rows));
}

GatedMlp::GatedMlp(std::unique_ptr<State> state) : state_(std::move(state)) {}
GatedMlp::GatedMlp(GatedMlp&&) noexcept = default;
GatedMlp& GatedMlp::operator=(GatedMlp&&) noexcept = default;
GatedMlp::~GatedMlp() = default;

int64_t GatedMlp::intermediate() const { return state_->intermediate(); }
int64_t GatedMlp::inputs() const { return state_->gate_up.info().k; }
int64_t GatedMlp::outputs() const { return state_->down.info().output_columns(); }

Result<int64_t> GatedMlp::workspace_bytes(int64_t m, DType x_dtype, DType y_dtype) const {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t first,
                          state_->gate_up.workspace_bytes(m, x_dtype, x_dtype));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t second, state_->down.workspace_bytes(m, x_dtype, y_dtype));
  return state_->intermediate_bytes(m, x_dtype) + std::max(first, second);
}

Status GatedMlp::run(const MatrixView& x, const MutableMatrixView& y, const MatrixView& residual,
                     const RunContext& context) const {
  const int64_t m = x.rows, hidden = state_->intermediate();
  if (!is_activation_dtype(x.dtype)) {
    return invalid_argument(std::string("x is ") + dtype_name(x.dtype) +
                            "; f32, f16 and bf16 are taken");
  }
  if (y.rows != m || (residual.data != nullptr && residual.rows != m)) {
    return invalid_argument("x has " + std::to_string(m) + " rows, y " + std::to_string(y.rows) +
                            ", residual " + std::to_string(residual.rows) + "; they must agree");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t needed, workspace_bytes(m, x.dtype, y.dtype));
  std::span<std::byte> workspace = context.workspace;
  std::unique_lock<std::mutex> lock(state_->own_workspace_mutex, std::defer_lock);
  if (workspace.empty()) {
    lock.lock();
    if (state_->own_workspace.bytes() < needed) {
      NIBBLE_ASSIGN_OR_RETURN(state_->own_workspace, Buffer::allocate(needed));
    }
    workspace = {reinterpret_cast<std::byte*>(state_->own_workspace.mutable_data()),
                 static_cast<size_t>(needed)};
  } else if (static_cast<int64_t>(workspace.size()) < needed) {
    return invalid_argument("the workspace has " + std::to_string(workspace.size()) +
                            " bytes, m = " + std::to_string(m) + " needs " +
                            std::to_string(needed));
  }
  RunContext inner = context;
  const auto offset = static_cast<size_t>(state_->intermediate_bytes(m, x.dtype));
  inner.workspace = workspace.subspan(offset);

  for (int64_t begin = 0; begin < m; begin += state_->band_rows) {
    const int64_t rows = std::min(state_->band_rows, m - begin);
    const auto band = [begin, rows](auto v) {
      using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(v.data)>>,
                                       const std::byte, std::byte>;
      if (v.data != nullptr) v.data = static_cast<Bytes*>(v.data) + begin * v.stride_bytes;
      v.rows = rows;
      return v;
    };
    const MutableMatrixView middle = dense_matrix<void>(workspace.data(), x.dtype, rows, hidden);
    Epilogue gate;
    gate.activation = state_->activation;
    NIBBLE_RETURN_IF_ERROR(state_->gate_up.run(band(x), middle, gate, inner));
    Epilogue add;
    add.residual = band(residual);
    NIBBLE_RETURN_IF_ERROR(state_->down.run(
        {middle.data, middle.dtype, rows, hidden, middle.stride_bytes}, band(y), add, inner));
  }
  return {};
}

}  // namespace nibble
