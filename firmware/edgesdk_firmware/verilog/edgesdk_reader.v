// Windows over an image that comes in raster order, element by element: what time-multiplexed arithmetic reads.
//
// A pixel comes as FOLDS beats of WIDTH bits. Beats lie in a ring of 2**ABITS words (a memory that is read in a clocked process);
// beats are counted modulo 2**CBITS, far enough that differences have a sign. For each window the loops are, from the outside:
// OUTER times, all rows, all columns, INNER beats of a pixel; with OUTER_STEP = 1 each turn of the outer loop begins one beat
// further in the pixel (a channel after another), with 0 the window is read again. A beat that lies outside is PAD. `m_first` and
// `m_last` mark the beats of a turn. The ring never overtakes the window: 2**ABITS is at least the span of a window in beats.
// The NEXT_ parameters are how far the beat moves when a loop ends; START is the first window's first beat.
module edgesdk_reader #(
    parameter integer WIDTH = 8,
    parameter integer ABITS = 6,
    parameter integer CBITS = 12,
    parameter integer HEIGHT = 8,
    parameter integer COLUMNS = 8,
    parameter integer ROWS = 3,
    parameter integer COLS = 3,
    parameter integer DOWN = 1,
    parameter integer RIGHTWARD = 1,
    parameter integer TOP = 0,
    parameter integer LEFT = 0,
    parameter integer PADDED = 0,
    parameter integer OUT_ROWS = 6,
    parameter integer OUT_COLS = 6,
    parameter integer OUTER = 1,
    parameter integer INNER = 1,
    parameter integer LBITS = 4,
    parameter [CBITS-1:0] START = 0,
    parameter [CBITS-1:0] NEXT_COLUMN = 0,
    parameter [CBITS-1:0] NEXT_ROW = 0,
    parameter [CBITS-1:0] NEXT_OUTER = 0,
    parameter [CBITS-1:0] NEXT_WINDOW = 0,
    parameter [CBITS-1:0] NEXT_LINE = 0,
    parameter [CBITS-1:0] NEXT_IMAGE = 0,
    parameter [WIDTH-1:0] PAD = 0
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output reg              m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data,
    output reg              m_first,
    output reg              m_last
);
    localparam integer END_INNER_COUNT = INNER - 1;
    localparam [LBITS-1:0] END_INNER = END_INNER_COUNT[LBITS-1:0];
    localparam integer END_COL_COUNT = COLS - 1;
    localparam [LBITS-1:0] END_COL = END_COL_COUNT[LBITS-1:0];
    localparam integer END_ROW_COUNT = ROWS - 1;
    localparam [LBITS-1:0] END_ROW = END_ROW_COUNT[LBITS-1:0];
    localparam integer END_OUTER_COUNT = OUTER - 1;
    localparam [LBITS-1:0] END_OUTER = END_OUTER_COUNT[LBITS-1:0];
    localparam integer END_WINDOW_COUNT = OUT_COLS - 1;
    localparam [LBITS-1:0] END_WINDOW = END_WINDOW_COUNT[LBITS-1:0];
    localparam integer END_LINE_COUNT = OUT_ROWS - 1;
    localparam [LBITS-1:0] END_LINE = END_LINE_COUNT[LBITS-1:0];
    localparam [CBITS-1:0] SIZE = {{(CBITS - 1){1'b0}}, 1'b1} << ABITS;

    reg [WIDTH-1:0] memory [0:(1<<ABITS)-1];
    reg [WIDTH-1:0] word;
    reg [CBITS-1:0] written, oldest, beat;
    reg [LBITS-1:0] inner, col, row, outer, window, line;
    wire            outside;
    reg             was_outside;

    // written - oldest < SIZE and written - beat > 0, as signed differences.
    wire [CBITS-1:0] room = written - oldest - SIZE;
    wire [CBITS-1:0] ahead = beat - written;
    wire             en = !m_valid || m_ready;
    wire             step = en && (outside || ahead[CBITS-1]);

    assign s_ready = room[CBITS-1];
    assign m_data = was_outside ? PAD : word;

    wire ends_inner = inner == END_INNER;
    wire ends_cols = ends_inner && col == END_COL;
    wire ends_turn = ends_cols && row == END_ROW;
    wire ends_outer = ends_turn && outer == END_OUTER;
    wire ends_line = ends_outer && window == END_WINDOW;
    wire ends_image = ends_line && line == END_LINE;

    wire [CBITS-1:0] move = ends_image ? NEXT_IMAGE : ends_line ? NEXT_LINE : ends_outer ? NEXT_WINDOW
        : ends_turn ? NEXT_OUTER : ends_cols ? NEXT_ROW : ends_inner ? NEXT_COLUMN : {{(CBITS - 1){1'b0}}, 1'b1};
    wire [CBITS-1:0] next = beat + move;

    always @(posedge clk) begin
        if (s_valid && s_ready) memory[written[ABITS-1:0]] <= s_data;
        if (step) word <= memory[beat[ABITS-1:0]];
    end

    always @(posedge clk) begin
        if (s_valid && s_ready) written <= written + 1'b1;
        if (en) m_valid <= step;
        if (step) begin
            m_first <= inner == 0 && col == 0 && row == 0;
            m_last <= ends_turn;
            was_outside <= outside;
            beat <= next;
            if (ends_outer) oldest <= next;
            inner <= ends_inner ? {LBITS{1'b0}} : inner + 1'b1;
            if (ends_inner) col <= ends_cols ? {LBITS{1'b0}} : col + 1'b1;
            if (ends_cols) row <= ends_turn ? {LBITS{1'b0}} : row + 1'b1;
            if (ends_turn) outer <= ends_outer ? {LBITS{1'b0}} : outer + 1'b1;
            if (ends_outer) window <= ends_line ? {LBITS{1'b0}} : window + 1'b1;
            if (ends_line) line <= ends_image ? {LBITS{1'b0}} : line + 1'b1;
        end
        if (rst) begin
            m_valid <= 1'b0;
            written <= {CBITS{1'b0}};
            beat <= START;
            oldest <= START;
            inner <= {LBITS{1'b0}};
            col <= {LBITS{1'b0}};
            row <= {LBITS{1'b0}};
            outer <= {LBITS{1'b0}};
            window <= {LBITS{1'b0}};
            line <= {LBITS{1'b0}};
        end
    end

    generate
        if (PADDED == 0) begin : bare
            assign outside = 1'b0;
        end else begin : padded
            // Where the window begins in the padded image, and where in it the pixel lies.
            localparam [LBITS:0] FROM_Y = TOP[LBITS:0];
            localparam integer TO_Y_COUNT = TOP + HEIGHT;
            localparam [LBITS:0] TO_Y = TO_Y_COUNT[LBITS:0];
            localparam [LBITS:0] FROM_X = LEFT[LBITS:0];
            localparam integer TO_X_COUNT = LEFT + COLUMNS;
            localparam [LBITS:0] TO_X = TO_X_COUNT[LBITS:0];
            localparam [LBITS:0] STEP_Y = DOWN[LBITS:0];
            localparam [LBITS:0] STEP_X = RIGHTWARD[LBITS:0];
            reg  [LBITS:0] origin_y, origin_x;
            wire [LBITS:0] y = origin_y + {1'b0, row};
            wire [LBITS:0] x = origin_x + {1'b0, col};
            wire           above, below, leftward, behind;
            if (TOP == 0) begin : top
                assign above = 1'b0;
            end else begin : over
                assign above = y < FROM_Y;
            end
            if (LEFT == 0) begin : left
                assign leftward = 1'b0;
            end else begin : beside
                assign leftward = x < FROM_X;
            end
            assign below = y >= TO_Y;
            assign behind = x >= TO_X;
            assign outside = above || below || leftward || behind;
            always @(posedge clk) begin
                if (step && ends_outer) origin_x <= ends_line ? {(LBITS + 1){1'b0}} : origin_x + STEP_X;
                if (step && ends_line) origin_y <= ends_image ? {(LBITS + 1){1'b0}} : origin_y + STEP_Y;
                if (rst) begin
                    origin_x <= {(LBITS + 1){1'b0}};
                    origin_y <= {(LBITS + 1){1'b0}};
                end
            end
        end
    endgenerate
endmodule
