"use strict";
(() => {
  const form = document.querySelector("form.filters");
  const rows = [...document.querySelectorAll("tr[data-scenario], section[data-scenario]")];
  const told = rows.map((row) => ({
    row, ...row.dataset, engines: row.dataset.engines.split("\n"), words: row.textContent.toLowerCase(),
  }));
  const field = (name) => (form.elements[name] ? form.elements[name].value : "");

  function show() {
    const wanted = ["scenario", "model", "machine"].map((name) => [name, field(name)]).filter(([, value]) => value);
    const engine = field("engine"), from = field("from"), to = field("to");
    const words = field("words").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of told) {
      const fits = wanted.every(([name, value]) => one[name] === value)
        && (!engine || one.engines.includes(engine))
        && (!from || one.date >= from) && (!to || one.date <= to)
        && words.every((word) => one.words.includes(word));
      one.row.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
  }

  // An address can name what to show: index.html#engine=llamacpp
  for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
    if (form.elements[name]) form.elements[name].value = value;
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
})();
