"""Where, for transformers: whole blocks of one go to blocks of another (Section 6, Figure 4)."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from paramtransfer.checks import refusal, whole
from paramtransfer.transfer.layout import Axis
from paramtransfer.transfer.plan import Pairing, Plan
from paramtransfer.transfer.reader import HEAD
from paramtransfer.transfer.wrapped_models import is_transformer, unwrap

_EMBEDDING = Axis(name="embedding", counted=False)
_NEVER_ALSO = ("blocks", "head", "head_dist")


@runtime_checkable
class _Attention(Protocol):
    """What a ViT's attention has."""

    qkv: nn.Module
    proj: nn.Module
    num_heads: int
    head_dim: int


def plan_blocks(
    upstream: nn.Module,
    downstream: nn.Module,
    *,
    layers: Sequence[int],
    into: Sequence[int] | None = None,
    also: Sequence[str] = (),
) -> Plan:
    """Pair blocks of two vision transformers as timm builds them; the rest stays fresh, and so does the head.

    Between two widths, the same random channels of the embedding are taken everywhere, whole attention heads, and
    random hidden units of each block.

    Args:
        upstream: the trained model, of which only the architecture is read.
        downstream: the fresh model; likewise.
        layers: the upstream's blocks, counted from 0.
        into: the downstream's block for each of them; None for the same positions.
        also: other parts to inherit: `patch_embed`, `pos_embed`, `cls_token`, `norm` and what else the model has.

    Raises:
        ValueError: a block or part that does not exist, no blocks at all, or attention heads of different sizes.
    """
    trained_core, fresh_core = unwrap(upstream), unwrap(downstream)
    theirs, ours = _blocks(trained_core.network), _blocks(fresh_core.network)
    into = layers if into is None else into
    _check_positions("transfer.layers", layers, len(theirs), type(trained_core.network).__name__)
    _check_positions("transfer.into", into, len(ours), type(fresh_core.network).__name__)
    if len(into) != len(layers) or len(set(into)) < len(into):
        raise refusal("transfer.into", list(into), f"as many different blocks as transfer.layers={list(layers)}")
    fresh, trained = fresh_core.network.state_dict(), trained_core.network.state_dict()
    parts = sorted({name.partition(".")[0] for name in fresh} - set(_NEVER_ALSO))
    for name in also:
        if name not in parts:
            raise ValueError(f"transfer.also={name}: must be among {', '.join(parts)}")
    if not layers and not also:
        raise ValueError("transfer.layers=[]: must name a block, or transfer.also a part")
    if layers:
        _check_heads(theirs[layers[0]], ours[into[0]])
    partners = {here: there for there, here in zip(layers, into, strict=True)}
    head_size = _attention(ours[0]).head_dim
    prefixes = (fresh_core.prefix, trained_core.prefix)
    plan = [
        _pairing(name, tensor, _partner(name, partners, also), trained, head_size, prefixes)
        for name, tensor in fresh.items()
    ]
    for part in also:
        misfits = [
            pairing
            for pairing in plan
            if pairing.target.removeprefix(prefixes[0]).partition(".")[0] == part and pairing.upstream is None
        ]
        if misfits:
            raise ValueError(f"transfer.also={part}: cannot be inherited, {misfits[0].target} {misfits[0].reason}")
    return plan


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    blocks = getattr(model, "blocks", None)
    if not is_transformer(model) or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"transfer=layers: {type(model).__name__} has no transformer blocks; use transfer=filters")
    return list(blocks)


def _attention(block: nn.Module) -> _Attention:
    attention = getattr(block, "attn", None)
    if not isinstance(attention, _Attention):
        raise ValueError(f"transfer=layers: the attention of {type(block).__name__} is not built as a ViT's")
    return attention


def _check_positions(key: str, positions: Sequence[int], count: int, name: str) -> None:
    for position in positions:
        whole(key, position, at_least=0)
        if position >= count:
            raise ValueError(f"{key}={position}: must be at most {count - 1}: {name} has blocks 0 to {count - 1}")


def _check_heads(theirs: nn.Module, ours: nn.Module) -> None:
    there, here = _attention(theirs), _attention(ours)
    if there.head_dim != here.head_dim:
        raise ValueError(
            f"transfer=layers: attention heads cannot be matched, {there.num_heads} of {there.head_dim} channels "
            f"upstream and {here.num_heads} of {here.head_dim} downstream; they must have as many channels"
        )


def _partner(name: str, partners: dict[int, int], also: Sequence[str]) -> str | None:
    """The upstream tensor for a tensor, if any."""
    part, _, rest = name.partition(".")
    if part != "blocks":
        return name if part in also else None
    position, _, inside = rest.partition(".")
    return f"blocks.{partners[int(position)]}.{inside}" if int(position) in partners else None


def _pairing(
    name: str,
    tensor: Tensor,
    partner: str | None,
    trained: dict[str, Tensor],
    head_size: int,
    prefixes: tuple[str, str],
) -> Pairing:
    target, shape = f"{prefixes[0]}{name}", tuple(tensor.shape)
    if partner is None:
        reason = HEAD if name.partition(".")[0].startswith("head") else "not among those named"
        return Pairing(target=target, shape=shape, reason=reason)
    if partner not in trained:
        return Pairing(target=target, shape=shape, reason="has no partner upstream")
    theirs = tuple(trained[partner].shape)
    axes = tuple(_axes(name, len(shape), head_size))
    if any(axis is None and a != b for axis, a, b in zip(axes, shape, theirs, strict=True)):
        return Pairing(target=target, shape=shape, reason=f"differs in shape from {partner}")
    return Pairing(target=target, shape=shape, upstream=f"{prefixes[1]}{partner}", upstream_shape=theirs, axes=axes)


def _axes(name: str, dims: int, head_size: int) -> Iterator[Axis | None]:
    """The axis of each dimension of a tensor."""
    block = ".".join(name.split(".")[:2])
    heads = Axis(name=f"{block}.heads", counted=False, unit=head_size)
    stacked = Axis(name=heads.name, counted=False, unit=head_size, repeats=3)
    hidden = Axis(name=f"{block}.mlp", counted=False)
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
