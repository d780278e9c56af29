// Shifts each of LANES signed elements to the left by a number of its own: what the weights of an output have in common.
//
// A word of SHIFTS (memory file, hexadecimal) holds the shifts of a beat, the first lane least significant; words are read one
// after another, TURNS of them, and again. OUT bits hold every result. TURNS <= 2**TBITS.
module edgesdk_shift #(
    parameter integer LANES = 1,
    parameter integer WIDTH = 16,
    parameter integer OUT = 19,
    parameter integer SBITS = 2,
    parameter integer TURNS = 4,
    parameter integer TBITS = 2,
    parameter SHIFTS = ""
) (
    input  wire                   clk,
    input  wire                   rst,
    input  wire                   s_valid,
    output wire                   s_ready,
    input  wire [LANES*WIDTH-1:0] s_data,
    output reg                    m_valid,
    input  wire                   m_ready,
    output wire [LANES*OUT-1:0]   m_data
);
    localparam integer LAST_COUNT = TURNS - 1;
    localparam [TBITS-1:0] LAST = LAST_COUNT[TBITS-1:0];

    reg [LANES*SBITS-1:0] rom [0:TURNS-1];
    generate
        if (SHIFTS != "") begin : filled  // tools that read this module alone have no file
            initial $readmemh(SHIFTS, rom);
        end
    endgenerate

    reg  [LANES*SBITS-1:0] shifts;
    reg  [TBITS-1:0]       turn;
    wire                   en = !m_valid || m_ready;
    wire [TBITS-1:0]       next = !(en && s_valid) ? turn : turn == LAST ? {TBITS{1'b0}} : turn + 1'b1;

    assign s_ready = en;

    // Read ahead: `shifts` are those of the next beat.
    always @(posedge clk) shifts <= rom[next];

    always @(posedge clk) begin
        turn <= next;
        if (en) m_valid <= s_valid;
        if (rst) begin
            turn <= {TBITS{1'b0}};
            m_valid <= 1'b0;
        end
    end

    genvar i;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : lane
            wire [WIDTH-1:0] x = s_data[i*WIDTH+:WIDTH];
            wire [OUT-1:0]   wide = {{(OUT - WIDTH){x[WIDTH-1]}}, x};
            reg  [OUT-1:0]   held;
            assign m_data[i*OUT+:OUT] = held;
            always @(posedge clk) if (en) held <= wide << shifts[i*SBITS+:SBITS];
        end
    endgenerate
endmodule
