"use strict";
(() => {
  // Nothing of a page may leave the machine of its reader.
  const config = { displaylogo: false, responsive: true, showSendToCloud: false,
                   modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const paper = { width: 660, height: 760 };  // pixels, of a figure in print: fits A4 and letter, with its caption
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  function themed(layout) {
    const isDark = dark.matches && !printing;
    const ink = isDark ? "#e4e8ec" : "#1d2733", grid = isDark ? "#333b45" : "#dfe4e9";
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid };
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      margin: { l: 10, r: 20, t: 30, b: 10 }, hoverlabel: { align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#87909a", activecolor: ink },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, ...structuredClone(layout),
    };
    for (const name of Object.keys(full).filter((key) => /^[xy]axis\d*$/.test(key)))
      full[name] = { ...axis, ...full[name] };
    if (printing) Object.assign(full, { width: paper.width, height: Math.min(paper.height, full.height) });
    return full;
  }

  const figures = [...document.querySelectorAll("figure")].map((figure) => {
    const views = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot"), select = figure.querySelector("select");
    const shown = {
      plot, drawn: false,
      draw() {
        const view = views[select ? select.selectedIndex : 0];
        figure.querySelector("h4").textContent = view.title;
        const layout = themed(view.layout);
        plot.style.minHeight = `${layout.height}px`;
        Plotly.react(plot, structuredClone(view.data), layout, config);
        shown.drawn = true;
      },
    };
    if (select) select.addEventListener("change", shown.draw);
    return shown;
  });

  // Drawn when they come near: what is folded has no width, and dozens at once take seconds.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      near.unobserve(entry.target);
      figures.find((one) => one.plot === entry.target).draw();
    }
  }, { rootMargin: "800px" });
  for (const figure of figures) near.observe(figure.plot);
  const again = () => figures.filter((one) => one.drawn).forEach((one) => one.draw());
  dark.addEventListener("change", again);

  let unfolded = [];
  addEventListener("beforeprint", () => {
    printing = true;
    unfolded = [...document.querySelectorAll("details.question:not([open])")];
    for (const one of unfolded) one.open = true;
    for (const one of figures) one.draw();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const one of unfolded) one.open = false;
    again();
  });

  function reveal() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  reveal();

  for (const button of document.querySelectorAll("button[data-from]")) {
    button.addEventListener("click", () => {
      const text = document.getElementById(button.dataset.from).textContent;
      const json = button.dataset.name.endsWith(".json");
      const blob = new Blob([json ? text : JSON.parse(text)], { type: json ? "application/json" : "text/csv" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = button.dataset.name;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
