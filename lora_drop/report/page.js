"use strict";
// Stage 3 again, at any threshold: the same comparisons as lora_drop/pruning/selection.py, on sums that Python made.

/** The layers of a projection that are retained at threshold T. */
function retained(projection, T) {
  const layers = projection.sums.length;
  let count = T >= 1 ? layers : 1;
  while (count < layers && projection.sums[count - 1] < T - 1e-12) count += 1;
  if (projection.orders) return projection.orders[count - 1];
  return projection.order.slice(0, count).sort((a, b) => a - b);
}

/** Bytes of a safetensors file with these tensors, all float32: 8 bytes, the header in steps of 8, the numbers. */
function fileSize(tensors) {
  const sorted = [...tensors].sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
  const header = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const [name, shape] of sorted) {
    const begin = end;
    end += 4 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: "F32", shape, data_offsets: [begin, end] };
  }
  const length = new TextEncoder().encode(JSON.stringify(header)).length;
  return 8 + 8 * Math.ceil(length / 8) + end;
}

/** Names and shapes of the tensors of LoRAs and of all that belongs to none. */
function tensorsOf(tensors, wanted) {
  const named = tensors.pairs.filter(([projection, layer]) => wanted(projection, layer)).flatMap(([, , name, A, B]) =>
    [[`${tensors.prefix}${name}.lora_A.weight`, A], [`${tensors.prefix}${name}.lora_B.weight`, B]]);
  return named.concat(tensors.others);
}

/** The selection at threshold T, and what it costs. */
function select(data, T) {
  const projections = data.projections.map((projection) => {
    const kept = retained(projection, T);
    const rest = projection.layers.map(([layer]) => layer).filter((layer) => !kept.includes(layer));
    const owners = [...kept, ...(data.share ? rest.slice(0, 1) : [])];
    let [coverage, parameters] = [0, 0];
    for (const [layer, importance, size] of projection.layers) {
      if (kept.includes(layer)) coverage += importance;
      if (owners.includes(layer)) parameters += size;
    }
    return { name: projection.name, kept, rest, owners, coverage, parameters };
  });
  const of = Object.fromEntries(projections.map((each) => [each.name, each]));
  const parameters = projections.reduce((sum, each) => sum + each.parameters, 0);
  if (!data.tensors) return { projections, parameters };
  const compact = fileSize(tensorsOf(data.tensors, (projection, layer) => of[projection].owners.includes(layer)));
  const peft = data.share ? fileSize(tensorsOf(data.tensors, () => true)) : compact;
  return { projections, parameters, peft, compact };
}

const grouped = (value) => value.toLocaleString("en-US");
/** A share in percent, a half rounded to the even number as Python does. */
function percent(value) {
  const exact = 100 * value, below = Math.floor(exact);
  return `${exact - below === 0.5 ? below + (below % 2) : Math.round(exact)} %`;
}

/** Ascending numbers with runs of three and more as spans: "0, 3 to 7". */
function spans(numbers) {
  const groups = [];
  for (const number of numbers) {
    const last = groups.at(-1);
    if (last && number === last.at(-1) + 1) last.push(number);
    else groups.push([number]);
  }
  return groups.map((group) => (group.length > 2 ? `${group[0]} to ${group.at(-1)}` : group.join(", "))).join(", ");
}

/** Show the selection at threshold T in a profile. */
function show(profile, data, T) {
  const chosen = select(data, T);
  const put = (name, text) => profile.querySelectorAll(`[data-out="${name}"]`).forEach((each) => { each.textContent = text; });
  put("parameters", grouped(chosen.parameters));
  put("share", percent(chosen.parameters / data.whole));
  if (data.tensors) { put("compact", grouped(chosen.compact)); put("peft", grouped(chosen.peft)); }
  put("threshold", String(T));
  for (const each of chosen.projections) {
    put(`kept-${each.name}`, spans(each.kept));
    put(`count-${each.name}`, `${each.kept.length} of ${each.kept.length + each.rest.length}`);
    put(`coverage-${each.name}`, percent(each.coverage));
  }
  const kept = chosen.projections.map((each) => new Set(each.kept));
  for (const row of profile.querySelectorAll(".heat tbody tr")) {
    const layer = Number(row.cells[0].textContent);
    kept.forEach((layers, column) => {
      const cell = row.cells[column + 1], fate = cell.querySelector("i"), own = layers.has(layer);
      if (!fate) return; // a projection without this layer
      cell.classList.toggle("own", own);
      fate.textContent = own ? "own" : data.share ? "shared" : "none";
    });
  }
}

for (const profile of document.querySelectorAll(".profile[data-slider]")) {
  const data = JSON.parse(document.getElementById(profile.dataset.slider).textContent);
  const [range, field] = [profile.querySelector("input[type=range]"), profile.querySelector("input[type=number]")];
  const change = (value, other) => {
    const T = Number(value);
    if (!(T > 0 && T <= 1)) return;
    other.value = value;
    show(profile, data, T);
  };
  range.addEventListener("input", () => change(range.value, field));
  field.addEventListener("input", () => change(field.value, range));
  profile.querySelector("button.reset").addEventListener("click", () => { field.value = data.threshold; change(data.threshold, range); });
  change(data.threshold, range);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code); // where the clipboard is closed, Ctrl-C copies it
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "copied"; } catch { button.textContent = "selected"; }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
}
