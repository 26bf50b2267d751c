"""Calls: of device functions that stay functions, through pointers, and of the host.

A call instruction enters. Arguments and results go through the local stack (analysis/inline.py lays them out), the
lanes that call as a mask; what leaves is the call, and a branch to the function's end where the callee has stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.analysis.flow import Op
from weft.analysis.inline import FlatFunction, address_taken, call_layout
from weft.codegen import abi
from weft.codegen.registers import RegisterFile
from weft.codegen.value import Value
from weft.codegen.warpops import WarpOps
from weft.errors import PtxError, UnsupportedError
from weft.isa.operands import Address, Register, Symbol, Vector
from weft.ptx.module import Module, Param


class Calls(WarpOps):
    """Emission of call, and of ld.param and st.param on what is passed."""

    if TYPE_CHECKING:  # the lowering's
        module: Module
        flat: FlatFunction
        registers: RegisterFile
        functions: dict[str, str]
        is_function: bool
        file: str
        local_offsets: dict[str, int]

    def _emit_parameter_register(self, op: Op) -> bool:
        """ld.param/st.param on a call's parameter that is kept in registers."""
        ins = op.ins
        loading = ins.opcode == "ld"
        address = ins.operands[1 if loading else 0]
        if not isinstance(address, Address) or not isinstance(address.base, Symbol):
            return False
        name = address.base.name
        if name not in self.flat.parameter_registers:
            return False
        offset = address.base.offset + address.offset
        data = ins.operands[0 if loading else 1]
        items = data.items if isinstance(data, Vector) else (data,)
        type_ = op.match.get("type")
        for i, item in enumerate(items):
            slot = Register(f"{name}@{offset + i * type_.bytes}")
            if not loading:
                value = self.read(item, type_.bits, type_)
                if value is not None:
                    self.write(slot, value)
                continue
            value = self.registers.read(slot.name)
            if value is None:
                continue
            value = self.resize(value, type_.bits, False)
            if isinstance(item, Register):
                width = self.registers.bits[item.name]
                value = self.resize(value, width, type_.signed)
            self.write(item, value)
        return True

    def _emit_call(self, op: Op) -> None:
        target = op.ins.operands[0]
        name = target.target.name
        handler = {"vprintf": self._call_printf, "__assertfail": self._call_assert, "malloc": self._call_malloc,
                   "free": self._call_free}.get(name)  # fmt: skip
        if handler is not None:
            handler(op, target)
        elif isinstance(target.target, Register):
            self._call_indirect(op, target)
        else:
            function = self.module.functions[name]
            self._call_function(target, function.returns, function.params, [(name, None)])

    def _call_indirect(self, op: Op, target) -> None:
        pointer = self.read(target.target, 64)
        returns, params, allowed = self._shape_of(op, target.prototype)
        if pointer is None:
            return
        shape = [(p.size, p.align) for p in (*returns, *params)]
        names = list(self.module.functions)
        choices = []
        known = self.const(0, 1)
        for name in allowed:
            function = self.module.functions[name]
            if [(p.size, p.align) for p in (*function.returns, *function.params)] == shape:
                chosen = self.icmp("eq", pointer, self.const(abi.function_address(names.index(name)), 64))
                choices.append((name, chosen))
                known = self.or_(known, chosen)
        self._fault_lanes(self.not_(known), abi.FaultKind.CALL)
        self._call_function(target, returns, params, choices)

    def _shape_of(self, op: Op, label: str) -> tuple[Sequence[Param], Sequence[Param], list[str]]:
        """(returns, parameters, functions that may be meant) of an indirect call by its .callprototype or
        .calltargets."""
        taken = address_taken(self.module)
        targets = self.flat.call_targets.get(label)
        if targets is not None:
            first = self.module.functions.get(targets[0])
            if first is None:
                raise UnsupportedError(f"{op.ins.name}: {targets[0]!r} of {label} is not defined in this module",
                                       file=self.file, line=op.ins.line)  # fmt: skip
            return first.returns, first.params, [name for name in taken if name in targets]
        prototype = self.flat.prototypes.get(label)
        if prototype is None:
            raise PtxError(f"{op.ins.name}: no .callprototype or .calltargets {label!r}", file=self.file,
                           line=op.ins.line)  # fmt: skip
        return prototype.returns, prototype.params, list(taken)

    def _fault_lanes(self, wrong: Value, kind: abi.FaultKind) -> None:
        if self.dry:
            return
        word = self.uval(self.ballot(wrong))
        bad, fine = self.new_label("bad"), self.new_label("fine")
        self.e(f"br i1 {self.t(f'icmp ne i32 {word}, 0')}, label %{bad}, label %{fine}, !prof !5")
        self.label(bad)
        self.depth += 1
        self.fault(kind, word)
        self.depth -= 1
        self.e("br label %stopped")
        self.label(fine)

    def _call_function(self, target, returns, params, choices: list[tuple[str, Value | None]]) -> None:
        """Pass the arguments on the local stack, call each chosen function with its lanes, fetch the results."""
        return_places, param_places, _ = call_layout(returns, params)
        frame = self.add(self.local_base(), self.const(self.flat.local_bytes, 64))

        def place(offset: int) -> Value:
            return self.add(frame, self.const(offset, 64))

        for formal, at, actual in zip(params, param_places, target.arguments, strict=True):
            for offset, value in self._argument_parts(formal, actual):
                if value is None:
                    return
                self.store("local", place(at + offset), [value])
        if not self.dry:
            for name, chosen in choices:
                self._call_lanes(name, chosen, self.uval(self.trunc(frame, 32)))
        for formal, at, actual in zip(returns, return_places, target.returns, strict=True):
            if isinstance(actual, Register):
                self.write(actual, self.load("local", place(at), max(8, formal.type.bits))[0])
                continue
            for offset, bits in self._parameter_parts(actual.name):
                value = self.load("local", place(at + offset), bits)[0]
                self.write(Register(f"{actual.name}@{offset}"), value)
            if actual.name in self.local_offsets:
                for offset in range(0, formal.size, 4):
                    word = self.load("local", place(at + offset), 32)
                    self.store("local", self.symbol_address(actual.name, offset), word)

    def _parameter_parts(self, name: str) -> list[tuple[int, int]]:
        """(offset, bits) of a call parameter kept in registers."""
        prefix = name + "@"
        return [(int(r[len(prefix) :]), bits) for r, bits in self.registers.bits.items() if r.startswith(prefix)]

    def _argument_parts(self, formal, actual):
        if isinstance(actual, Symbol):
            for offset, _ in self._parameter_parts(actual.name):
                yield offset, self.registers.read(f"{actual.name}@{offset}")
            if actual.name in self.local_offsets:
                for offset in range(0, formal.size, 4):
                    yield offset, self.load("local", self.symbol_address(actual.name, offset), 32)[0]
        else:
            yield 0, self.read(actual, max(8, formal.type.bits), formal.type)

    def _call_lanes(self, name: str, chosen: Value | None, frame: str) -> None:
        ir_name = self.functions.setdefault(name, f"@device.{len(self.functions)}")
        word = self.mask_word() if chosen is None else self.uval(self.ballot(chosen))
        end = None
        if chosen is not None:
            then, end = self.new_label("chosen"), self.new_label("next")
            self.e(f"br i1 {self.t(f'icmp ne i32 {word}, 0')}, label %{then}, label %{end}")
            self.label(then)
        status = self.t(
            f"call i32 {ir_name}(ptr %wk, ptr %blk, ptr %sh, ptr %loc, i32 %w, i32 %cx, i32 %cy, i32 %cz, "
            f"i32 {word}, i32 {frame}, i32 {self.site})"
        )
        onward = end or self.new_label("returned")
        self.e(f"br i1 {self.t(f'icmp ne i32 {status}, 0')}, label %stopped, label %{onward}")
        self.label(onward)

    def local_base(self) -> Value:
        """Where this function's local memory begins."""
        return self.scalar("%stack64", 64, 0, 1 << 31) if self.is_function else self.const(0, 64)

    def _call_arguments(self, target, count: int) -> list[Value] | None:
        values = []
        for argument in target.arguments[:count]:
            value = (
                self.registers.read(f"{argument.name}@0")
                if not isinstance(argument, Register)
                else self.read(argument, 64)
            )
            if value is None:
                return None
            values.append(self.resize(value, 64, False))
        return values

    def _call_result(self, target, value: Value) -> None:
        if target.returns:
            name = target.returns[0].name
            register = f"{name}@0"
            if register in self.registers.bits:
                self.write(Register(register), self.resize(value, self.registers.bits[register], False))

    def _call_printf(self, op: Op, target) -> None:
        values = self._call_arguments(target, 2)
        if values is not None:
            self._call_result(target, self.trunc(self.host_call(abi.HostCall.PRINTF, values), 32))

    def _call_assert(self, op: Op, target) -> None:
        values = self._call_arguments(target, 5)
        if values is not None:
            self.host_call(abi.HostCall.ASSERT, values)

    def _call_malloc(self, op: Op, target) -> None:
        values = self._call_arguments(target, 1)
        if values is not None:
            self._call_result(target, self.host_call(abi.HostCall.MALLOC, values))

    def _call_free(self, op: Op, target) -> None:
        values = self._call_arguments(target, 1)
        if values is not None:
            self.host_call(abi.HostCall.FREE, values)
