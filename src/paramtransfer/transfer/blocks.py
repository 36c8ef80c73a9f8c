"""Where, for transformers: whole blocks of one go to blocks of another (Section 6, Figure 4)."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from paramtransfer.transfer.layout import Axis, is_transformer
from paramtransfer.transfer.plan import Pairing, Plan

_EMBEDDING = Axis(name="embedding", filters=False)
_NEVER_ALSO = ("blocks", "head", "head_dist")


def plan_blocks(
    upstream: nn.Module, downstream: nn.Module, *, layers: Sequence[int], into: Sequence[int], also: Sequence[str]
) -> Plan:
    """Pair blocks of two vision transformers as timm builds them; the rest stays fresh, and so does the head.

    Between two widths, the same random channels of the embedding are taken everywhere, whole attention heads, and
    random hidden units of each block.

    Args:
        upstream: the trained model, of which only the architecture is read.
        downstream: the fresh model; likewise.
        layers: the upstream's blocks, counted from 0.
        into: the downstream's block for each of them.
        also: other parts to inherit: `patch_embed`, `pos_embed`, `cls_token`, `norm` and what else the model has.

    Raises:
        ValueError: a block or part that does not exist, no blocks at all, or attention heads of different sizes.
    """
    theirs, ours = _blocks(upstream), _blocks(downstream)
    _check_positions("transfer.layers", layers, len(theirs), type(upstream).__name__)
    _check_positions("transfer.into", into, len(ours), type(downstream).__name__)
    parts = sorted({name.partition(".")[0] for name in downstream.state_dict()} - set(_NEVER_ALSO))
    for name in also:
        if name not in parts:
            raise ValueError(f"transfer.also={name}: must be among {', '.join(parts)}")
    if not layers and not also:
        raise ValueError("transfer.layers=[]: must name a block, or transfer.also a part")
    if layers:
        _check_heads(theirs[layers[0]], ours[into[0]])
    sources = {here: there for there, here in zip(layers, into, strict=True)}
    head_size = _attention(ours[0]).head_dim
    trained = upstream.state_dict()
    plan = [
        _pairing(name, tensor, _source(name, sources, also), trained, head_size)
        for name, tensor in downstream.state_dict().items()
    ]
    for part in also:
        misfits = [pairing for pairing in plan if pairing.target.partition(".")[0] == part and pairing.source is None]
        if misfits:
            raise ValueError(f"transfer.also={part}: cannot be inherited, {misfits[0].target} {misfits[0].reason}")
    return plan


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    if not is_transformer(model):
        raise ValueError(f"transfer=layers: {type(model).__name__} has no transformer blocks; use transfer=filters")
    blocks: Any = model.blocks
    return list(blocks)


def _attention(block: nn.Module) -> Any:
    attention: Any = getattr(block, "attn", None)
    if not all(hasattr(attention, part) for part in ("qkv", "proj", "num_heads", "head_dim")):
        raise ValueError(f"transfer=layers: the attention of {type(block).__name__} is not built as a ViT's")
    return attention


def _check_positions(key: str, positions: Sequence[int], count: int, name: str) -> None:
    for position in positions:
        if position >= count:
            raise ValueError(f"{key}={position}: must be at most {count - 1}: {name} has blocks 0 to {count - 1}")


def _check_heads(theirs: nn.Module, ours: nn.Module) -> None:
    there, here = _attention(theirs), _attention(ours)
    if there.head_dim != here.head_dim:
        raise ValueError(
            f"transfer=layers: attention heads cannot be matched, {there.num_heads} of {there.head_dim} channels "
            f"upstream and {here.num_heads} of {here.head_dim} downstream; they must have as many channels"
        )


def _source(name: str, sources: dict[int, int], also: Sequence[str]) -> str | None:
    """The upstream tensor for a tensor, if any."""
    part, _, rest = name.partition(".")
    if part != "blocks":
        return name if part in also else None
    position, _, inside = rest.partition(".")
    return f"blocks.{sources[int(position)]}.{inside}" if int(position) in sources else None


def _pairing(name: str, tensor: Tensor, source: str | None, trained: dict[str, Tensor], head_size: int) -> Pairing:
    shape = tuple(tensor.shape)
    if source is None:
        part = name.partition(".")[0]
        reason = "head: the label sets differ" if part.startswith("head") else "not among those named"
        return Pairing(target=name, shape=shape, reason=reason)
    if source not in trained:
        return Pairing(target=name, shape=shape, reason="has no partner upstream")
    source_shape = tuple(trained[source].shape)
    axes = tuple(_axes(name, len(shape), head_size))
    if any(axis is None and a != b for axis, a, b in zip(axes, shape, source_shape, strict=True)):
        return Pairing(target=name, shape=shape, reason=f"differs in shape from {source}")
    return Pairing(target=name, shape=shape, source=source, source_shape=source_shape, axes=axes)


def _axes(name: str, dims: int, head_size: int) -> Iterator[Axis | None]:
    """The axis of each dimension of a tensor."""
    block = ".".join(name.split(".")[:2])
    heads = Axis(name=f"{block}.heads", filters=False, unit=head_size)
    stacked = Axis(name=heads.name, filters=False, unit=head_size, repeats=3)
    hidden = Axis(name=f"{block}.mlp", filters=False)
    if ".attn.qkv." in name:
        yield from (stacked, _EMBEDDING)[:dims]
    elif ".attn.proj." in name:
        yield from (_EMBEDDING, heads)[:dims]
    elif ".mlp.fc1." in name:
        yield from (hidden, _EMBEDDING)[:dims]
    elif ".mlp.fc2." in name:
        yield from (_EMBEDDING, hidden)[:dims]
    elif name in ("pos_embed", "cls_token", "dist_token", "reg_token"):
        yield from (None, None, _EMBEDDING)[:dims]
    elif name.startswith("patch_embed.proj"):
        yield from (_EMBEDDING, None, None, None)[:dims]
    elif dims == 1 and (".norm" in name or name.startswith("norm") or ".ls" in name):
        yield _EMBEDDING
    else:
        yield from (None,) * dims
