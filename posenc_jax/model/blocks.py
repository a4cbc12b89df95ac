"""The transformer block in Flax Linen: attention, feed-forward, norms and residual connections."""

from collections.abc import Callable

import flax.linen as nn

from posenc_jax.attention import attend
from posenc_jax.model.array_module import ArrayModule
from posenc_jax.model.attention_layer import Attention
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.feed_forward import Experts, Mlp
from posenc_jax.model.norms import learned_norm


class Block(ArrayModule):
    """A transformer block; see `norm_position` and `parallel` of `Architecture`."""

    config: ModelConfig
    index: int
    causal: bool = True
    attend: Callable = attend

    @nn.compact
    def __call__(self, x_BTD, pos_BT, seg_BT, cache):
        c = self.config
        attention = Attention(c, self.index, self.causal, self.attend, name="attention")
        mlp = (Experts if c.experts else Mlp)(c, name="mlp")
        input_BTD = (
            x_BTD if c.norm_position == "post" else learned_norm(self, c, "attention", x_BTD)
        )
        out_BTD, kept = attention(input_BTD, pos_BT, seg_BT, cache)
        if c.parallel != "none":
            if c.parallel == "two_norms":
                input_BTD = learned_norm(self, c, "mlp", x_BTD)
            return x_BTD + out_BTD + mlp(input_BTD), kept
        x_BTD = self._add("attention", x_BTD, input_BTD, out_BTD)
        input_BTD = x_BTD if c.norm_position == "post" else learned_norm(self, c, "mlp", x_BTD)
        return self._add("mlp", x_BTD, input_BTD, mlp(input_BTD)), kept

    def _add(self, name, x_BTD, input_BTD, out_BTD):
        """Returns the residual stream after the sublayer `name`, whose input was input_BTD."""
        c = self.config
        if c.norm_position == "post":
            return learned_norm(self, c, name, x_BTD + out_BTD)
        if c.norm_position == "both":
            return x_BTD + learned_norm(self, c, f"{name}_post", out_BTD)
        return (input_BTD if c.norm_position == "pre_normed_residual" else x_BTD) + out_BTD
