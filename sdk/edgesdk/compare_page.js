// Sorts the rows of a table by a column; without scripts the page is read as it stands, the fastest device first.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("tr"), column = [...head.children].indexOf(button.closest("th"));
    const way = button.dataset.way === "1" ? -1 : 1, body = head.closest("table").tBodies[0];
    const value = (row) => row.children[column].dataset.v ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return way * (isNaN(left) || isNaN(right) ? left.localeCompare(right) : left - right);
    });
    for (const other of head.querySelectorAll("button")) delete other.dataset.way;
    button.dataset.way = way;
    body.append(...rows);
  });
}
